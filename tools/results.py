"""What the diffusion family measures on digits: python tools/results.py

Trains each config of RUNS below --runs, measures it in each way that CLAIMS and the table need, keeps every figure in
docs/results.json, and writes docs/results.md from that file. What has been trained or measured is not done again, so
that a script that was stopped goes on. Two hours on two CPU cores.
"""

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from genjax import config

ROOT = Path(__file__).parents[1]
KEPT, PAGE = ROOT / "docs/results.json", ROOT / "docs/results.md"


class Run(NamedTuple):
    """A run, and the ways in which it is measured: words for genjax.evaluate after --workdir."""

    config: str
    ways: tuple[str, ...] = ("",)
    after: str = ""
    """The run whose couples it learns from."""


BITS = "--likelihood 100"
RUNS = {
    "classifier": Run("classifier.py"),
    "ddpm": Run(
        "ddpm.py",
        (
            f"--steps 250 {BITS}",
            "--solver Ancestral --steps 20",
            "--solver DDIM --steps 20",
            "--solver DDIM --steps 20 --classifier {runs}/classifier --classifier_scale 1",
            "--solver DDIM --steps 20 --classifier {runs}/classifier --classifier_scale 4",
        ),
    ),
    "learned_variance": Run("ddpm.py:learned_variance", (f"--steps 250 {BITS}",)),
    "vp": Run("score_sde.py:vp", (f"--steps 250 {BITS}",)),
    "subvp": Run("score_sde.py:subvp", (f"--steps 250 {BITS}",)),
    "ve": Run("score_sde.py:ve", (f"--steps 250 {BITS}",)),
    "edm": Run(
        "edm.py",
        (BITS, "--steps 5", "--solver Euler --steps 10", "--solver Euler --steps 36"),
    ),
    "flow": Run(
        "rectified_flow.py",
        (
            BITS,
            "--steps 1",
            "--steps 2",
            "--solver Euler --steps 10",
            "--solver Heun --steps 5",
            "--guidance 2",
            "--guidance 4",
        ),
    ),
    "reflow": Run("rectified_flow.py:reflow", ("--steps 1", "--steps 2", "--steps 50"), after="flow"),
    "meanflow": Run("meanflow.py", ("--steps 1", "--steps 2", "--solver Euler --steps 50")),
    "dit": Run("dit.py", (f"--guidance 1 {BITS}", "", "--guidance 3")),
}


class Claim(NamedTuple):
    """One figure is below, or above, another."""

    says: str
    figure: str
    below: bool
    one: tuple[str, str]
    other: tuple[str, str]


FRECHET, ACCURACY, SPREAD = "frechet_distance", "conditional_accuracy", "spread"
LED = "--solver DDIM --steps 20 --classifier {runs}/classifier --classifier_scale "
CLAIMS = (
    Claim(
        "20 steps without noise (DDIM) come nearer to the data than 20 with it (ancestral)",
        *(FRECHET, True, ("ddpm", "--solver DDIM --steps 20"), ("ddpm", "--solver Ancestral --steps 20")),
    ),
    Claim(
        "Heun's method beats Euler's at 36 evaluations, on EDM",
        *(FRECHET, True, ("edm", BITS), ("edm", "--solver Euler --steps 36")),
    ),
    Claim(
        "at ten evaluations Euler's beats it there (found, not foreseen: Heun's was expected to)",
        *(FRECHET, True, ("edm", "--solver Euler --steps 10"), ("edm", "--steps 5")),
    ),
    Claim(
        "one step after reflow beats one step before it",
        *(FRECHET, True, ("reflow", "--steps 1"), ("flow", "--steps 1")),
    ),
    Claim(
        "two steps after reflow beat two before it",
        *(FRECHET, True, ("reflow", "--steps 2"), ("flow", "--steps 2")),
    ),
    Claim(
        "one step along mean velocities (MeanFlow) beats one along the velocity",
        *(FRECHET, True, ("meanflow", "--steps 1"), ("flow", "--steps 1")),
    ),
    Claim(
        "two steps along mean velocities beat two along the velocity",
        *(FRECHET, True, ("meanflow", "--steps 2"), ("flow", "--steps 2")),
    ),
    Claim(
        "classifier-free guidance raises the share of samples that show their class",
        *(ACCURACY, False, ("flow", "--guidance 2"), ("flow", BITS)),
    ),
    Claim(
        "and lowers diversity, the distance of two samples of a class",
        *(SPREAD, True, ("flow", "--guidance 4"), ("flow", BITS)),
    ),
    Claim(
        "a stronger classifier raises that share too",
        *(ACCURACY, False, ("ddpm", LED + "4"), ("ddpm", LED + "1")),
    ),
    Claim(
        "and lowers diversity",
        *(SPREAD, True, ("ddpm", LED + "4"), ("ddpm", LED + "1")),
    ),
    *(
        Claim(
            f"the bound of {name} by its ODE is tighter than that of its chain",
            *("bits_per_dim", True, (name, way), (name, way)),
        )
        for name, way in (("ddpm", f"--steps 250 {BITS}"), ("vp", f"--steps 250 {BITS}"), ("edm", BITS), ("flow", BITS))
    ),
)


@dataclass(frozen=True)
class Results:
    """Train and measure what has not been, and write docs/results.md."""

    runs: str = "runs/results"
    """Directory of the runs."""
    only: str | None = None
    """Name of the one run to make now; all when not given."""
    write: bool = False
    """Train and measure nothing: write the page from docs/results.json."""


def main(options: Results) -> None:
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {}
    for name, run in RUNS.items():
        if not options.write and options.only in (None, name):
            make(Path(options.runs), name, run, kept)
    PAGE.write_text(page(kept), encoding="utf-8")


def make(runs: Path, name: str, run: Run, kept: dict) -> None:
    """Train the run and measure it, as far as that has not been done."""
    directory = runs / name
    more = ""
    if run.after:
        couples = runs / f"{run.after}-couples"
        if not (couples / "couples.npz").is_file():
            call(f"sample.py --workdir {runs / run.after} --couples True --num 20000 --out {couples}")
        more = f"--train.start.path {runs / run.after} --data.path {couples / 'couples.npz'}"
    if not (directory / "model.safetensors").is_file():
        call(f"train.py --config configs/{run.config} --workdir {directory} {more}")
    record = kept.setdefault(name, {"config": run.config, "ways": {}})
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line["step"] for line in lines]
    spent = zip(steps, [0, *steps], (line["steps_per_second"] for line in lines), strict=False)
    record |= {"steps": steps[-1], "seconds": round(sum((now - before) / rate for now, before, rate in spent))}
    for way in run.ways:
        if way not in record["ways"]:
            call(f"-m genjax.evaluate --workdir {directory} {way.format(runs=runs)}")
            record["ways"][way] = json.loads((directory / "evaluation.json").read_text(encoding="utf-8"))
            KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def call(words: str) -> None:
    subprocess.run([sys.executable, *shlex.split(words)], cwd=ROOT, check=True)


# ------------------------------------------------------------------------------------------------------------- the page


def page(kept: dict) -> str:
    """The text of docs/results.md."""
    lines = [
        "# What the diffusion family measures on digits",
        "",
        "Made by `python tools/results.py` from its runs; every figure is in [results.json](results.json). 8x8 digits",
        "of scikit-learn, one seed, the averaged weights, 500 samples; Fréchet distance in pixels (training to test",
        "images: 0.29), conditional accuracy by a classifier trained on held-out images, bits per dimension of 100",
        "held-out images of 17 levels. Seconds are those of training on two CPU cores that had other work.",
        "",
        "| config | steps | seconds | sampler | NFE | guidance | Fréchet | accuracy | bits, ODE | bits, bound |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for record in (kept[name] for name in RUNS if name in kept):
        for figures in record["ways"].values():
            if FRECHET in figures:
                lines.append(row(record, figures))
    lines += [
        "",
        "## Claims, each of one seed",
        "",
        "| claim | figure | one | other | holds |",
        "|---|---|---|---|---|",
    ]
    lines += [verdict(claim, kept) for claim in CLAIMS]
    return "\n".join(lines) + "\n"


def row(record: dict, figures: dict) -> str:
    led = f", classifier {figures['classifier_scale']:g}" if "classifier_scale" in figures else ""
    cells = [
        f"`{record['config']}`",
        str(record["steps"]),
        str(record["seconds"]),
        f"{figures['solver']}, {figures['steps']}{led}",
        str(figures["nfe"]),
        f"{figures['guidance']:g}",
        f"{figures[FRECHET]:.2f}",
        *(told(figures, name, 3) for name in (ACCURACY, "bits_per_dim_ode", "bits_per_dim_bound")),
    ]
    return f"| {' | '.join(cells)} |"


def told(figures: dict, name: str, digits: int) -> str:
    return f"{figures[name]:.{digits}f}" if name in figures else ""


def verdict(claim: Claim, kept: dict) -> str:
    """A line of the table of claims; without figures, that it was not measured."""
    names = ("bits_per_dim_ode", "bits_per_dim_bound") if claim.figure == "bits_per_dim" else (claim.figure,) * 2
    pair = [
        kept.get(run, {"ways": {}})["ways"].get(way, {}).get(name)
        for (run, way), name in zip((claim.one, claim.other), names, strict=True)
    ]
    if None in pair:
        return f"| {claim.says} | {claim.figure.replace('_', ' ')} | | | not measured |"
    holds = "yes" if (pair[0] < pair[1]) is claim.below else "**no**"
    return f"| {claim.says} | {claim.figure.replace('_', ' ')} | {pair[0]:.3f} | {pair[1]:.3f} | {holds} |"


if __name__ == "__main__":
    config.run(lambda argv: main(config.parse(argv, Results())))
