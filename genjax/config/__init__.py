"""Configs: typed plain data, from a file and the command line to JSON in a run directory, and back.

A config is a composition of frozen dataclasses, networks (Linen modules) among them. `tree` says what that means and
changes it, `record` writes it to JSON and rebuilds it from JSON alone, `command_line` reads it from a config file and
from `--dotted.field value`. Everything refused is an `InputError` of one sentence.
"""

from genjax.config.command_line import load, parse, parse_with_config, run
from genjax.config.record import differences, from_dict, read, save, to_dict
from genjax.config.tree import override

__all__ = [
    "differences",
    "from_dict",
    "load",
    "override",
    "parse",
    "parse_with_config",
    "read",
    "run",
    "save",
    "to_dict",
]
