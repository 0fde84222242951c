"""The picture at the top of README.md: python tools/emoji_picture.py

Emoji drawn by the run that ships, with seed 0, sample i from name i, as they come: six rows of names that it was
trained on, and one of names in skin tones that it was not shown them in, which is checked. Three seconds on a CPU and
the packages of the extra `emoji` are all it takes.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro
from PIL import Image

from genjax import config
from genjax.errors import InputError
from genjax.runs.directory import SHIPPED
from genjax.runs.pictures import grid, to_uint8
from genjax.runs.weights import read_weights

TRAINED = """
grinning face; smiling face with heart-eyes; smiling face with sunglasses; crying face; angry face;
    face with medical mask; robot; alien; skull; pile of poo
cat face; dog face; panda; frog; pig face; fox; lion; octopus; butterfly; penguin
red apple; banana; strawberry; watermelon; grapes; pineapple; carrot; pizza; hamburger; doughnut
flag of Japan; flag of Germany; flag of Italy; flag of Brazil; flag of Canada; flag of Sweden; flag of Switzerland;
    flag of Ukraine; rainbow flag; pirate flag
sun; volcano; cloud with rain; snowman; cactus; sunflower; evergreen tree; fire; full moon; red heart
rocket; automobile; bicycle; sailboat; house; key; light bulb; soccer ball; guitar; wrapped gift
"""
HELD_OUT = """
flexed biceps, medium skin tone; woman bowing, light skin tone; person in suit levitating, medium-dark skin tone;
    detective, dark skin tone; man mage, dark skin tone; merman, medium skin tone; man beard, medium skin tone;
    woman firefighter, medium skin tone; student, dark skin tone; folded hands, dark skin tone
"""
COLUMNS, SCALE, COLOURS = 10, 4, 128


@dataclass(frozen=True)
class Picture:
    """Where the picture goes."""

    out: Path = Path("docs/images/emoji.png")


def main(options: Picture) -> None:
    directory = SHIPPED / "emoji"
    task = config.read(directory / "config.json")
    parts, _ = read_weights(directory, task)
    groups = ((TRAINED, task.data.source("train")), (HELD_OUT, task.data.held_out_pairs()))
    prompts = [prompt for text, examples in groups for prompt in named(text, examples)]
    images = to_uint8(task.sample(parts.trained, prompts, seed=0))
    canvas = grid(images, columns=COLUMNS).repeat(SCALE, 0).repeat(SCALE, 1)
    Image.fromarray(canvas).quantize(COLOURS).save(options.out, optimize=True)


def named(text: str, examples) -> list[str]:
    """The names in a text, which are all first captions of these examples."""
    names = [" ".join(name.split()) for row in text.strip().splitlines() for name in row.split(";") if name.strip()]
    there = {examples[i]["captions"][0] for i in range(len(examples))}
    if missing := [name for name in names if name not in there]:
        raise InputError(f"not among the names of this part: {', '.join(missing)}")
    return names


if __name__ == "__main__":
    main(tyro.cli(Picture))
