"""What each bottleneck does to a picture: python tools/compress.py

Trains each of RUNS below --runs, measures it on all held-out pictures, keeps the figures in docs/compress.json and
draws from them

compress-rate.png       peak signal-to-noise ratio against bits per picture, as written down and as their entropy
compress-pictures.png   the same digits by every bottleneck of 6 bits for each position, the first row as they are
compress-emoji.png      the same emoji by every tokeniser of emoji, the first row as they are

and the tables of docs/compress.md. They are the configs without their critics: the digits take half an hour on two
CPU cores, the emoji (--emoji True) another. What has been trained is not trained again.
"""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from genjax import config
from genjax.parallel.compilation import convolve_by_xla
from genjax.runs.pictures import grid, to_uint8
from genjax.runs.weights import read_weights
from genjax.tasks.tokeniser import Tokeniser
from genjax.training.loop import fit
from train import Options

ROOT = Path(__file__).parents[1]
KEPT, PAGE = ROOT / "docs/compress.json", ROOT / "docs/compress.md"
BEGIN, END = "<!-- {} by tools/compress.py -->\n", "<!-- end -->\n"
STEPS, SHOWN = 1000, 12
TO_TEST = "frechet_distance_train_to_test"
ALONE = f"--critic None --train.steps {STEPS} --train.sample_every {STEPS} --train.validate_every {STEPS}"
DIGITS = f"{ROOT / 'configs/vqgan.py'}:digits {ALONE}"


class Run(NamedTuple):
    """A bottleneck, and the words that make it of a config."""

    family: str
    title: str
    words: str
    config: str = DIGITS


def vq(kind: str, bits: int, more: str = "") -> str:
    return f"--bottleneck {kind} --bottleneck.size {2**bits} --bottleneck.width 4 --model.code_channels 4 {more}"


def finite(levels: int) -> str:
    return f"--bottleneck FSQ --bottleneck.levels {levels} {levels} --model.code_channels 2"


def signs(bits: int) -> str:
    return f"--bottleneck LFQ --bottleneck.bits {bits} --model.code_channels {bits}"


def residual(bits: int) -> str:
    level = f"--bottleneck.level AverageVQ --bottleneck.level.size {2**bits} --bottleneck.level.width 4"
    return f"--bottleneck Residual --bottleneck.depth 2 {level} --model.code_channels 4"


POSTERIOR = "--bottleneck Posterior --bottleneck.weight 1e-3 --model.code_channels 2 --model.moments True"
RUNS = {
    "gradient-6": Run("VQ", "`VQ`, 64 entries", vq("VQ", 6)),
    "rotated-6": Run("rotated", "`AverageVQ`, rotation trick", vq("AverageVQ", 6, "--bottleneck.estimate rotated")),
    "posterior": Run("Posterior", "`Posterior`, 2 numbers", POSTERIOR),
}
for bits in (6, 4, 2, 8):  # the most telling first
    RUNS |= {
        f"average-{bits}": Run("AverageVQ", f"`AverageVQ`, {2**bits} entries", vq("AverageVQ", bits)),
        f"finite-{bits}": Run("FSQ", f"`FSQ`, {2 ** (bits // 2)} x {2 ** (bits // 2)}", finite(2 ** (bits // 2))),
        f"lookup-{bits}": Run("LFQ", f"`LFQ`, {bits} signs", signs(bits)),
        f"residual-{bits}": Run("Residual", f"`Residual`, 2 of {2 ** (bits // 2)}", residual(bits // 2)),
    }
EMOJI = {
    f"emoji-{variant}": Run(family, title, "", f"{ROOT / 'configs'}/{file}.py:{variant} {ALONE}")
    for file, variant, family, title in (
        ("vqgan", "emoji", "AverageVQ", "`AverageVQ`, 1,024 entries"),
        ("vqgan", "fsq", "FSQ", "`FSQ`, 8 x 5 x 5 x 5"),
        ("vqgan", "lfq", "LFQ", "`LFQ`, 10 signs"),
        ("vqgan", "rvq", "Residual", "`Residual`, 2 of 32"),
    )
} | {"emoji-vae": Run("Posterior", "`Posterior`, 4 numbers", "", f"{ROOT / 'configs/vae.py'}:emoji {ALONE}")}


@dataclass(frozen=True)
class Compress:
    """Train and measure what has not been, and draw."""

    emoji: bool = False
    """Train the tokenisers of emoji too."""

    runs: str = "runs/compress"
    """Directory of the runs."""
    write: bool = False
    """Train and measure nothing: draw what docs/compress.json holds."""


def main(options: Compress) -> None:
    convolve_by_xla()
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {}
    for name, run in (RUNS | EMOJI if options.emoji else RUNS).items():
        if options.write:
            break
        directory = Path(options.runs) / name
        untrained = not (directory / "model.safetensors").is_file()
        if untrained:
            fit(task_of(run), directory)
        if untrained or name not in kept:
            kept[name] = measured(directory)
            KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    rates(kept).savefig(ROOT / "docs/images/compress-rate.png", dpi=120, bbox_inches="tight")
    shown = [name for name in RUNS if name in kept and (name.endswith("-6") or name == "posterior")]
    draw(options, shown, "compress-pictures", scale=5)
    draw(options, [name for name in EMOJI if name in kept], "compress-emoji", scale=1)
    page = with_text(PAGE.read_text(encoding="utf-8"), "digits", table(RUNS, kept) + DIGITS_SHOWN)
    if not EMOJI.keys().isdisjoint(kept):
        page = with_text(page, "emoji", table(EMOJI, kept) + EMOJI_SHOWN)
    PAGE.write_text(page, encoding="utf-8")


def task_of(run: Run) -> Tokeniser:
    """The config with the words of a run."""
    return config.parse_with_config(shlex.split(f"--config {run.config} {run.words}"), Options())[1]


def measured(directory: Path) -> dict[str, float]:
    """The figures of a run, as `python -m genjax.evaluate` tells them."""
    task = config.read(directory / "config.json")
    (numbers,) = task.request("evaluate")(task, read_weights(directory, task)[0])
    return dict(numbers.values)


def entropy(figures: dict[str, float]) -> float | None:
    """Bits per picture by the entropy of each level's ids; None of a Gaussian posterior."""
    found = [value for name, value in figures.items() if name.partition("/")[0] == "entropy"]
    return figures["positions_counted"] / figures["test_images"] * sum(found) if found else None


def rates(kept: dict[str, dict]) -> plt.Figure:
    """PSNR of each family against its bits: a line by what is written down, points by the entropy."""
    figure, axes = plt.subplots(figsize=(6.4, 4))
    for family in dict.fromkeys(run.family for run in RUNS.values()):
        own = [kept[name] for name, run in RUNS.items() if run.family == family and name in kept]
        own = sorted(
            (figures for figures in own if entropy(figures) is not None),
            key=lambda figures: figures["bits_per_picture"],
        )
        if own:
            psnr = [figures["psnr"] for figures in own]
            (line,) = axes.plot([figures["bits_per_picture"] for figures in own], psnr, "o-", label=family)
            axes.plot([entropy(figures) for figures in own], psnr, "x", color=line.get_color())
    axes.axhline(kept["posterior"]["psnr"], color="grey", ls=":", label="Posterior, 32 numbers")
    axes.set(xlabel="bits per picture (x: their entropy)", ylabel="PSNR, dB")
    axes.legend()
    return figure


def draw(options: Compress, names: list[str], name: str, scale: int) -> None:
    """A grid in docs/images: held-out pictures, and below them what each run makes of them."""
    if not names:
        return
    rows = []
    for directory in (Path(options.runs) / run for run in names):
        task = config.read(directory / "config.json")
        parts, _ = read_weights(directory, task)
        images = task.pictures("test", SHOWN)
        rows.append(task.drawn_from(parts, task.vectors_of(parts, images)))
    tiles = grid(to_uint8(np.concatenate([images, *rows])), columns=SHOWN).repeat(scale, 0).repeat(scale, 1)
    tiles = np.broadcast_to(tiles, (*tiles.shape[:2], 3))
    plt.imsave(ROOT / f"docs/images/{name}.png", tiles)


DIGITS_SHOWN = """
![PSNR against bits](images/compress-rate.png)

![Digits by each bottleneck of 6 bits for a position](images/compress-pictures.png)
"""
EMOJI_SHOWN = """
![Emoji by each tokeniser](images/compress-emoji.png)
"""


def table(runs: dict[str, Run], kept: dict[str, dict]) -> str:
    """The newest figures of runs; Fréchet distances where they were measured, of pictures that are small enough."""
    found = {name: kept[name] for name in runs if name in kept}
    apart = {f"{own[TO_TEST]:.2f}" for own in found.values() if TO_TEST in own}
    heads = [
        "bottleneck",
        "bits, written",
        "bits, entropy",
        "PSNR, dB",
        *["Fréchet"] * bool(apart),
        "usage",
        "perplexity",
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, run in sorted(runs.items(), key=lambda item: item[1].family):
        if name not in found:
            continue
        figures, bits = found[name], entropy(found[name])
        usage, perplexity = (
            [value for key, value in figures.items() if key.partition("/")[0] == kind]
            for kind in ("usage", "perplexity")
        )
        cells = [
            run.title,
            "" if bits is None else f"{figures['bits_per_picture']:.0f}",
            "" if bits is None else f"{bits:.0f}",
            f"{figures['psnr']:.2f}",
            *([f"{figures['frechet_distance']:.2f}"] if apart else []),
            ", ".join(f"{share:.2f}" for share in usage),
            ", ".join(f"{value:.0f}" for value in perplexity),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if apart:
        lines.append(f"\nThe Fréchet distance of training pictures to the held-out ones is {', '.join(sorted(apart))}.")
    return "\n".join(lines) + "\n"


def with_text(page: str, name: str, text: str) -> str:
    """The page with the text between the marks of a name."""
    before, rest = page.split(BEGIN.format(name))
    return before + BEGIN.format(name) + text + END + rest.split(END, 1)[1]


if __name__ == "__main__":
    config.run(lambda argv: main(config.parse(argv, Compress())))
