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


RUNS = {
    **{f"average-{b}": Run("AverageVQ", f"`AverageVQ`, {2**b} entries", vq("AverageVQ", b)) for b in (2, 4, 6, 8)},
    "gradient-6": Run("VQ", "`VQ`, 64 entries", vq("VQ", 6)),
    "rotated-6": Run(
        "AverageVQ, rotated", "`AverageVQ`, rotation trick", vq("AverageVQ", 6, "--bottleneck.estimate rotated")
    ),
    **{
        f"finite-{round(2 * np.log2(n))}": Run(
            "FSQ", f"`FSQ`, {n} x {n}", f"--bottleneck FSQ --bottleneck.levels {n} {n} --model.code_channels 2"
        )
        for n in (2, 4, 8, 16)
    },
    **{
        f"lookup-{b}": Run(
            "LFQ", f"`LFQ`, {b} signs", f"--bottleneck LFQ --bottleneck.bits {b} --model.code_channels {b}"
        )
        for b in (2, 4, 6, 8)
    },
    **{
        f"residual-{2 * b}": Run(
            "Residual",
            f"`Residual`, 2 of {2**b}",
            f"--bottleneck Residual --bottleneck.depth 2 --bottleneck.level AverageVQ --bottleneck.level.size {2**b}"
            " --bottleneck.level.width 4 --model.code_channels 4",
        )
        for b in (1, 2, 3, 4)
    },
    "posterior": Run(
        "Posterior",
        "`Posterior`, 2 numbers",
        "--bottleneck Posterior --bottleneck.weight 1e-3 --model.code_channels 2 --model.moments True",
    ),
}


@dataclass(frozen=True)
class Compress:
    """Train and measure what has not been, and draw."""

    runs: str = "runs/compress"
    """Directory of the runs."""


def main(options: Compress) -> None:
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {}
    for name, run in RUNS.items():
        directory = Path(options.runs) / name
        if not (directory / "model.safetensors").is_file():
            fit(task_of(run), directory)
        if name not in kept:
            kept[name] = measured(directory)
            KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    rates(kept).savefig(ROOT / "docs/images/compress-rate.png", dpi=120, bbox_inches="tight")
    directories = [Path(options.runs) / name for name in RUNS if name.endswith("-6") or name == "posterior"]
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
        own = [kept[name] for name, run in RUNS.items() if run.family == family and "entropy" in str(kept[name])]
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
    for name, run in RUNS.items():
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
    before, rest = page.split(BEGIN)
    return before + BEGIN + "\n".join(lines) + "\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    config.run(lambda argv: main(config.parse(argv, Compress())))
