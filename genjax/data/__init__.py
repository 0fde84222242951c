"""Data on the host: sources of examples, and the loader that turns one into batches.

A dataset is a frozen dataclass of plain fields. `dataset.source("train")` opens it and gives random access to its
examples; a `Loader` reads them in a seeded order, lets the task transform them, and stacks them into the rows that this
process owns of each global batch. Everything here is numpy and threads; the device sees nothing of it.
"""

from genjax.data.blurred import EightGaussians, Rings, TwentyFiveGaussians, TwoMoons
from genjax.data.byte_tokenizer import ByteTokenizer
from genjax.data.captions import DIGIT_NAMES, TEMPLATES, captions_for
from genjax.data.codes import CodeExample, Codes
from genjax.data.couples import CoupleExample, Couples
from genjax.data.densities import Checkerboard, Densities, Pinwheel, PlaneDensity, PointExample
from genjax.data.digits import Digits
from genjax.data.emoji import Emoji
from genjax.data.examples import Dataset, Examples, ImageExample, LabelledImages, existing_path, readable, real
from genjax.data.folder import ImageFolder
from genjax.data.found import Images
from genjax.data.idx import Idx
from genjax.data.images import decode_whole
from genjax.data.loader import Loader
from genjax.data.npz import Npz
from genjax.data.rows import filled, in_blocks, stacked
from genjax.data.shards import WebDataset
from genjax.data.subword_tokenizer import SubwordTokenizer
from genjax.data.text import Text, Texts

__all__ = [
    "DIGIT_NAMES",
    "TEMPLATES",
    "ByteTokenizer",
    "Checkerboard",
    "CodeExample",
    "Codes",
    "CoupleExample",
    "Couples",
    "Dataset",
    "Densities",
    "Digits",
    "EightGaussians",
    "Emoji",
    "Examples",
    "Idx",
    "ImageExample",
    "ImageFolder",
    "Images",
    "LabelledImages",
    "Loader",
    "Npz",
    "Pinwheel",
    "PlaneDensity",
    "PointExample",
    "Rings",
    "SubwordTokenizer",
    "Text",
    "Texts",
    "TwentyFiveGaussians",
    "TwoMoons",
    "WebDataset",
    "captions_for",
    "decode_whole",
    "existing_path",
    "filled",
    "in_blocks",
    "readable",
    "real",
    "stacked",
]
