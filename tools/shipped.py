"""Which of the runs that ship were made by the code as it is: python tools/shipped.py

A run depends on the modules of genjax and pallas_kernels that its config's types import, directly or not, of those
rooms whose code decides what is trained (ROOMS). Their fingerprint, of the code without comments and docstrings, is
recorded beside the run when it is made, and with it what the run measured in its first steps:

    python tools/shipped.py                                 a table: each run is fresh, or stale, and what has changed
    python tools/shipped.py --record NAME --workdir RUN     pretrained/NAME has just been made from the run RUN
    python tools/shipped.py --repeat NAME                   train the first steps again: is the code still the same?

Most changes of a module that many systems share change no number of theirs. So a stale run is first repeated: where
its first hundred steps measure what they did, to a thousandth, the code as it is would have made it too, and its record
is renewed. Where they do not, it is made anew by the command in its README, before the change is called done.
"""

import ast
import hashlib
import json
import math
import os
import signal
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import grimp
from rich.console import Console
from rich.table import Table

from genjax import config
from genjax.config.tree import children, is_node, is_record
from genjax.errors import InputError
from genjax.parallel.compilation import convolve_by_xla
from genjax.runs.directory import SHIPPED, shipped_runs
from genjax.training.loop import fit

ROOT = Path(__file__).parents[1]
PACKAGES = ("genjax", "pallas_kernels")
ROOMS = (
    "adversarial",
    "data",
    "diffusion",
    "keys",
    "language",
    "models",
    "nn",
    "quantisation",
    "representation",
    "tasks",
    "training",
)
"""Of genjax; what only reads configs, writes files or measures does not change what is trained."""
RECORD = "sources.json"
FIRST_STEPS = 100
TOLERANCE = 1e-3
"""Relative: sums in another order grow to less within the first steps, and another arithmetic does not stay below."""


@dataclass(frozen=True)
class Shipped:
    """Which of the runs that ship are stale."""

    record: str | None = None
    """Name of a run that has just been made."""
    workdir: str | None = None
    """The run directory that it was made from."""
    repeat: str | None = None
    """Name of a run whose first steps are trained again."""


def main(options: Shipped) -> None:
    convolve_by_xla()  # as at the doors that made the runs
    graph = grimp.build_graph(*PACKAGES)
    if (options.record is None) != (options.workdir is None):
        raise InputError(
            "--record and --workdir belong together: the name of a run that ships, and what it was made from"
        )
    if options.record is not None:
        write(SHIPPED / options.record, graph, first_steps(Path(options.workdir)))
    if options.repeat is not None:
        repeat(SHIPPED / options.repeat, graph)
    table = Table("run that ships", "made by", "changed since")
    for run in shipped_runs():
        changed = changes(run, graph)
        if changed is None:
            table.add_row(run.name, "[red]unknown", "no record of its sources")
        else:
            state = "[yellow]STALE" if changed else "[green]this code"
            table.add_row(run.name, state, ", ".join(changed[:4]) + (" ..." if len(changed) > 4 else ""))
    Console(width=120).print(table)


def changes(run: Path, graph: grimp.ImportGraph) -> list[str] | None:
    """The modules that are not as they were when the run was made; None where that was not recorded."""
    if not (run / RECORD).is_file():
        return None
    then, now = _read(run)["modules"], sources(run, graph)
    return sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))


def write(run: Path, graph: grimp.ImportGraph, began: list[dict[str, float]]) -> None:
    """Record that the code as it is makes this run, which began so."""
    record = {"first_steps": began, "modules": sources(run, graph)}
    (run / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def first_steps(workdir: Path) -> list[dict[str, float]]:
    """The losses and gradient norms that a run told of its first steps. Raises InputError where it has not so many."""
    path = workdir / "metrics.jsonl"
    if not path.is_file():
        raise InputError(f"{workdir} is no run directory: it has no {path.name}")
    told = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    lines = [line for line in told if line["step"] <= FIRST_STEPS]
    if not lines or lines[-1]["step"] < FIRST_STEPS:
        raise InputError(f"{path} does not tell what was measured at step {FIRST_STEPS}")
    return [{k: v for k, v in line.items() if k == "step" or _is_measured(k)} for line in lines]


def repeat(run: Path, graph: grimp.ImportGraph) -> None:
    """Train the first steps of a run again, and renew its record. Raises InputError where they are other ones."""
    if not (run / RECORD).is_file():
        raise InputError(f"{run.name} has no record of how it began: make it anew and --record it")
    then = _read(run)["first_steps"]
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / run.name
        _train_first_steps(config.read(run / "config.json"), workdir)
        now = first_steps(workdir)
    if differing := difference(then, now):
        raise InputError(f"the code as it is does not make {run.name}: {differing}; make it anew")
    write(run, graph, then)


def difference(then: list[dict[str, float]], now: list[dict[str, float]]) -> str:
    """The first number that is not what it was, in words; nothing where all are."""
    if [line["step"] for line in then] != [line["step"] for line in now]:
        return f"{len(now)} lines tell of the first steps, and not the same {len(then)}"
    for old, new in zip(then, now, strict=True):
        if missing := old.keys() ^ new.keys():
            return f"{sorted(missing)[0]} is not told at the same steps"
        for name, value in old.items():
            if not math.isclose(value, new[name], rel_tol=TOLERANCE, abs_tol=1e-6):
                return f"{name} at step {old['step']:.0f} is {new[name]:.6g} and was {value:.6g}"
    return ""


def _train_first_steps(task, workdir: Path) -> None:
    """Start to train, and ask to stop by the signal that everyone else would send."""
    over = threading.Event()

    def stop_when_told():
        path = workdir / "metrics.jsonl"
        while not over.wait(0.2):
            if path.is_file() and f'"step": {FIRST_STEPS},' in path.read_text(encoding="utf-8"):
                os.kill(os.getpid(), signal.SIGTERM)
                return

    watch = threading.Thread(target=stop_when_told)
    watch.start()
    try:
        fit(task, workdir)
    finally:
        over.set()
        watch.join()


def _is_measured(name: str) -> bool:
    return name.partition("/")[0] in ("loss", "gradient_norm")


def _read(run: Path) -> dict:
    return json.loads((run / RECORD).read_text(encoding="utf-8"))


def sources(run: Path, graph: grimp.ImportGraph) -> dict[str, str]:
    """The fingerprint of each module that decides what the run learns."""
    modules = set()
    for module in _modules(config.read(run / "config.json")):
        modules |= {module} | graph.find_upstream_modules(module)
    kept = (m for m in modules if m.startswith("pallas_kernels") or m.split(".")[1:2] and m.split(".")[1] in ROOMS)
    return {module: fingerprint(_path(module).read_text(encoding="utf-8")) for module in sorted(kept)}


def fingerprint(source: str) -> str:
    """Of code, whatever its comments, docstrings and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [each for each in body if not (isinstance(each, ast.Expr) and _is_text(each.value))]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _modules(node) -> set[str]:
    """The modules of the types in a config."""
    own = {type(node).__module__} if is_record(node) else set()
    below = (child.value for child in children(node).values()) if is_node(node) else ()
    return own.union(*map(_modules, below))


def _path(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


if __name__ == "__main__":
    config.run(lambda argv: main(config.parse(argv, Shipped())))
