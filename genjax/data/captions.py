"""Captions: made from the name of a class, or read from the text that lies beside an image.

An image has one or more candidate captions; the task draws one of them each time it sees the image.
"""

import json
from pathlib import PurePath

from genjax.errors import InputError

__all__ = ["DIGIT_NAMES", "PARSERS", "TEMPLATES", "captions_for", "captions_of_record", "parse_captions"]

TEMPLATES = ("a handwritten {name}", "the digit {name}", "a scan of a {name}", "{name}")

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

CAPTION_FIELDS = ("caption", "text")


def captions_for(name: str, templates: tuple[str, ...] = TEMPLATES) -> tuple[str, ...]:
    """The templates with `{name}` filled in: the candidate captions of every image of the class `name`."""
    return tuple(template.replace("{name}", name) for template in templates)


def parse_captions(data: bytes, name: str) -> tuple[str, ...]:
    """The captions in the bytes of the caption file `name`, by its suffix (a key of `PARSERS`).

    Raises `InputError` naming the file when it is not UTF-8, not in its format, or holds no caption.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{name}: the caption is not UTF-8 text.") from None
    return PARSERS[PurePath(name).suffix.lower()](text, name)


def captions_of_record(text: str, where: str, fields: tuple[str, ...] = CAPTION_FIELDS) -> tuple[dict, tuple[str, ...]]:
    """One JSON object and the captions in the first of `fields` that it has: a string, or a list of strings."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({error}).") from None
    captions = next((record[field] for field in fields if field in record), None) if isinstance(record, dict) else None
    captions = (captions,) if isinstance(captions, str) else captions
    if not isinstance(captions, list | tuple) or not captions or not all(isinstance(c, str) and c for c in captions):
        accepted = " or ".join(f'"{field}"' for field in fields)
        raise InputError(
            f"{where}: expected a JSON object with a caption under {accepted}, a string or a list of them."
        )
    return record, tuple(captions)


def _lines(text: str, name: str) -> tuple[str, ...]:
    """Every line that is not blank is one candidate caption."""
    captions = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not captions:
        raise InputError(f"{name}: the caption file is empty; expected one caption, or one on each line.")
    return captions


def _record(text: str, name: str) -> tuple[str, ...]:
    return captions_of_record(text, name)[1]


PARSERS = {".txt": _lines, ".json": _record}
