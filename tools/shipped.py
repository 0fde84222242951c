"""Which of the runs that ship were made by the code as it is: python tools/shipped.py

A run depends on the modules of genjax and pallas_kernels that its config's types import, directly or not, of those
rooms whose code decides what is trained (ROOMS). Their fingerprint, of the code without comments and docstrings, is
recorded beside the run when it is made:

    python tools/shipped.py                   a table: each run is fresh, or stale, and which modules have changed
    python tools/shipped.py --record NAME     the run pretrained/NAME has just been made: record what made it

A stale run still works; it is made anew by the command in its README before a change that caused it is called done.
"""

import ast
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import grimp
import tyro
from rich.console import Console
from rich.table import Table

from genjax import config
from genjax.config.tree import children, is_node, is_record
from genjax.runs.directory import SHIPPED, shipped_runs

ROOT = Path(__file__).parents[1]
PACKAGES = ("genjax", "pallas_kernels")
ROOMS = ("adversarial", "data", "diffusion", "keys", "language", "models", "nn", "representation", "tasks", "training")
"""Of genjax; what only reads configs, writes files or measures does not change what is trained."""
RECORD = "sources.json"


@dataclass(frozen=True)
class Shipped:
    """Which of the runs that ship are stale."""

    record: str | None = None
    """Name of a run that has just been made."""


def main(options: Shipped) -> None:
    graph = grimp.build_graph(*PACKAGES)
    if options.record is not None:
        run = SHIPPED / options.record
        (run / RECORD).write_text(json.dumps(sources(run, graph), indent=1) + "\n", encoding="utf-8")
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
    then, now = json.loads((run / RECORD).read_text(encoding="utf-8")), sources(run, graph)
    return sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))


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
    main(tyro.cli(Shipped))
