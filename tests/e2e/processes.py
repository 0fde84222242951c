"""Training in processes of its own, as people start it."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]

started: list[subprocess.Popen] = []
"""What conftest.py ends after each test."""


def start_training(*words: object, environment: Mapping[str, str]) -> subprocess.Popen:
    """train.py with these words, on the CPU; what it tells and what it refuses are one text."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""} | environment
    command, out = [sys.executable, "train.py", *map(str, words)], subprocess.PIPE
    started.append(
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT, text=True)
    )
    return started[-1]
