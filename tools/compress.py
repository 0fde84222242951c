"""What each bottleneck does to a picture: python tools/compress.py

Trains the tokeniser of configs/vqgan.py:digits, without its critic, once for each of RUNS below --runs, measures it on
all held-out digits, keeps the figures in docs/compress.json and draws from them

compress-rate.png       peak signal-to-noise ratio against bits per picture, as written down and as their entropy
compress-pictures.png   the same digits by every bottleneck of 6 bits for each position, the first row as they are

and the table of docs/compress.md. What has been trained is not trained again. Half an hour on two CPU cores.
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
from genjax.runs.pictures import grid, to_uint8
from genjax.runs.weights import read_weights
from genjax.tasks.tokeniser import Tokeniser
from genjax.training.loop import fit
from train import Options

ROOT = Path(__file__).parents[1]
KEPT, PAGE = ROOT / "docs/compress.json", ROOT / "docs/compress.md"
BEGIN, END = "<!-- made by tools/compress.py -->\n", "<!-- end -->\n"
STEPS, DIGITS = 1000, 12


class Run(NamedTuple):
    """A bottleneck, and the words that make it of the config."""

    family: str
    title: str
    words: str


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


@dataclass(frozen=True)
class Compress:
    """Train and measure what has not been, and draw."""

    runs: str = "runs/compress"
    """Directory of the runs."""
    write: bool = False
    """Train and measure nothing: draw what docs/compress.json holds."""


def main(options: Compress) -> None:
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {}
    for name, run in RUNS.items():
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
    directories = [Path(options.runs) / name for name in shown]
    plt.imsave(ROOT / "docs/images/compress-pictures.png", pictures(directories), cmap="gray")
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), kept), encoding="utf-8")


def task_of(run: Run) -> Tokeniser:
    """The config with the words of a run."""
    few = f"--critic None --train.steps {STEPS} --train.sample_every {STEPS} --train.validate_every {STEPS}"
    words = f"--config {ROOT / 'configs/vqgan.py'}:digits {few} {run.words}"
    return config.parse_with_config(shlex.split(words), Options())[1]


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


def pictures(directories: list[Path]) -> np.ndarray:
    """A grid: held-out digits, and below them what each run makes of them."""
    rows = []
    for directory in directories:
        task = config.read(directory / "config.json")
        parts, _ = read_weights(directory, task)
        images = task.pictures("test", DIGITS)
        rows.append(task.drawn_from(parts, task.vectors_of(parts, images)))
    tiles = grid(to_uint8(np.concatenate([images, *rows])), columns=DIGITS)[..., 0]
    return tiles.repeat(5, 0).repeat(5, 1)


def with_table(page: str, kept: dict[str, dict]) -> str:
    """The page with the newest table between its marks."""
    lines = ["| bottleneck | bits, written | bits, entropy | PSNR, dB | Fréchet | usage |", "|---|---|---|---|---|---|"]
    for name, run in sorted(RUNS.items(), key=lambda item: item[1].family):
        if name not in kept:
            continue
        figures = kept[name]
        bits = entropy(figures)
        usage = [value for key, value in figures.items() if key.partition("/")[0] == "usage"]
        cells = [
            run.title,
            "" if bits is None else f"{figures['bits_per_picture']:.0f}",
            "" if bits is None else f"{bits:.0f}",
            f"{figures['psnr']:.2f}",
            f"{figures['frechet_distance']:.2f}",
            ", ".join(f"{share:.2f}" for share in usage),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if apart := {f"{f['frechet_distance_train_to_test']:.2f}" for f in kept.values()}:
        lines.append(f"\nThe Fréchet distance of training digits to the held-out ones is {', '.join(sorted(apart))}.")
    lines += [
        "",
        "![PSNR against bits](images/compress-rate.png)",
        "",
        "![Digits by each bottleneck of 6 bits for a position](images/compress-pictures.png)",
    ]
    before, rest = page.split(BEGIN)
    return before + BEGIN + "\n".join(lines) + "\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    config.run(lambda argv: main(config.parse(argv, Compress())))
