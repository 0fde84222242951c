"""Run the whole suites of the kernels where their sources are not those of the last whole run, and say so.

The default tests hold every pair of an attention kernel's features to its laws by a few sets of features that cover
them. Here every pair is held to them alone, and what needs the packages of GPUs, but no GPU, is run. That takes many
minutes, and what it proves stands until a source changes: `whole_run.json` holds, for each suite, a SHA-256 of the
sources it was last run over with success. A suite whose record fits is left out; one that is run and holds renews it.

    python tools/whole_kernels.py pairs           every pair of features, of the forms that need no package but jax
    python tools/whole_kernels.py gpu             Triton interpreted, GPU kernels compiled within budget: .[test,aot]
    python tools/whole_kernels.py gpu --check     run nothing; exit code 1 where the suite is to be run
    python tools/whole_kernels.py pairs --always  whatever the record says

Exit code: 0 where the record fits or everything held; otherwise that of the first command that failed.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
RECORD = "tests/pallas_kernels/whole_run.json"
KERNELS = "tests/pallas_kernels"
LAWS = f"{KERNELS}/dot_product_attention/test_laws.py"


class Suite(NamedTuple):
    """Commands, in their order, and what their outcome depends on."""

    commands: tuple[tuple[str, ...], ...]
    """Arguments of python."""
    sources: tuple[str, ...]
    """Files, and folders with all that lies below, from the root."""
    environments: tuple[dict[str, str], ...]
    """What each command finds in its environment besides."""
    needs: tuple[str, ...] = ()
    """Modules without which tests would skip themselves."""


PYTEST = ("-m", "pytest", "-n", "2")
FOLDERS = ("pallas_kernels", KERNELS)
TOOLS = ("tests/tools/test_aot.py", "tests/tools/test_tune.py")
SUITES = {
    "pairs": Suite(((*PYTEST, "-m", "whole", LAWS, "-k", "not triton"),), FOLDERS, ({},)),
    "gpu": Suite(
        (
            (
                *(*PYTEST, "-m", "not gpu and not parity and not whole"),
                *(f"{KERNELS}/triton", f"{KERNELS}/mosaic", f"{KERNELS}/neighbours/test_triton.py"),
                *(f"{KERNELS}/dispatch/test_capabilities.py", f"{KERNELS}/dispatch/test_scheduled.py", *TOOLS),
            ),
            # Triton's interpreter has to be chosen before Triton is imported
            (*PYTEST, "-m", "whole or not slow", LAWS, "-k", "triton"),
            ("tools/aot.py", "--models"),
        ),
        (
            *(*FOLDERS, "tools/aot.py", "tools/aot_budget.json", "tools/h100.txtpb", "tools/tune.py", *TOOLS),
            *("genjax/models/mmdit.py", "genjax/nn/attention.py"),  # the model that --models measures
        ),
        ({}, {"TRITON_INTERPRET": "1"}, {}),
        ("triton", "jax_triton", "jax_plugins.xla_cuda12"),
    ),
}


def fingerprint(root: Path, sources: tuple[str, ...]) -> str:
    """SHA-256 over the paths and contents of all source files, in the order of their paths; of none but the record."""
    files = set()
    for source in sources:
        path = root / source
        files |= {path} if path.is_file() else {found for found in path.rglob("*") if found.is_file()}
    total = hashlib.sha256()
    for path in sorted(files, key=lambda path: path.relative_to(root).as_posix()):
        name = path.relative_to(root).as_posix()
        if name == RECORD or "__pycache__" in path.parts:
            continue
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{content}  {name}\n".encode())
    return total.hexdigest()


def recorded(root: Path) -> dict[str, str]:
    path = root / RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def renew(root: Path, suite: str, found: str) -> None:
    kept = {**recorded(root), suite: found}
    (root / RECORD).write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--check", action="store_true", help="run nothing; exit code 1 where the suite is to be run")
    parser.add_argument("--always", action="store_true", help="run, whatever the record says")
    options = parser.parse_args(arguments)
    suite = SUITES[options.suite]
    before = fingerprint(ROOT, suite.sources)
    if before == recorded(ROOT).get(options.suite) and not options.always:
        print(
            f"skipped: the whole suite {options.suite!r} of the kernels, for it held over these very sources"
            f" (SHA-256 {before[:12]} in {RECORD})"
        )
        return 0
    print(
        f"the kernels, or their tests, are not those of the last whole run of {options.suite!r} in {RECORD}", flush=True
    )
    if options.check:
        return 1
    for module in suite.needs:
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    for command, environment in zip(suite.commands, suite.environments, strict=True):
        print("$", *(f"{name}={value}" for name, value in environment.items()), "python", *command, flush=True)
        status = subprocess.run([sys.executable, *command], cwd=ROOT, env={**os.environ, **environment}).returncode
        if status:
            return status
    if fingerprint(ROOT, suite.sources) != before:
        print("the sources changed while the suite ran: its record stays as it was", file=sys.stderr)
        return 1
    renew(ROOT, options.suite, before)
    print(f"{RECORD} now holds this run of {options.suite!r}: commit it", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
