"""Configs: typed plain data, from a file and the command line to JSON in a run directory, and back.

A config is a composition of frozen dataclasses, networks (Linen modules) among them. `tree` says what that means and
changes it, `kinds` finds what a field may hold by name, `values` and `hints` check values against declared types,
`record` writes a config to JSON and rebuilds it from JSON alone (`moved` knows what has moved since), `files` loads
config files, and `command_line` reads `--dotted.field value` with the `options` that tyro knows. Everything refused is
an `InputError` of one sentence.
"""

from genjax.config.command_line import parse, parse_with, parse_with_config, run
from genjax.config.files import load, packages_of
from genjax.config.record import allowed, differences, from_dict, read, save, to_dict
from genjax.config.tree import frozen, may_change, override

__all__ = [
    "allowed",
    "differences",
    "from_dict",
    "frozen",
    "load",
    "may_change",
    "override",
    "packages_of",
    "parse",
    "parse_with",
    "parse_with_config",
    "read",
    "run",
    "save",
    "to_dict",
]
