"""Config files: Python that defines `VARIANTS`, a dict of functions without arguments that return a config.

The first variant is the default. A config file may use packages of its own, and modules that lie beside it: its folder
and the working directory are where Python looks for them, after everywhere else, so that `configs/emoji.py` hides no
package. What it may not do is define the types of its config itself: a run could not be read without it.
"""

import importlib.util
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from genjax.config.hints import did_you_mean
from genjax.config.record import look_in
from genjax.config.tree import children, frozen, is_node, is_record, walk
from genjax.config.values import typed
from genjax.errors import InputError

__all__ = ["load", "packages_of"]


def load(spec: str) -> tuple[Any, str]:
    """The config that `FILE[:VARIANT]` names, and a name for its runs: `configs/sd3.py:nano` is `sd3-nano`."""
    file, _, variant = spec.partition(":")
    path = Path(file)
    if not path.is_file():
        there = sorted(str(other) for other in path.parent.glob("*.py"))
        listed = f" (there are {', '.join(there)})" if there else ""
        raise InputError(f"there is no config file {file!r}{listed}{did_you_mean(file, there)}")
    found = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if found is None or found.loader is None:
        raise InputError(f"{file} is not a config file: its name does not end in .py")
    for folder in (path.parent.resolve(), Path.cwd()):
        look_in(folder)
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module  # Where dataclasses look up the types that are written as strings.
    found.loader.exec_module(module)
    variants = getattr(module, "VARIANTS", None)
    if not isinstance(variants, Mapping) or not variants:
        raise InputError(f"{file} is not a config file: it defines no VARIANTS, a dict of functions returning a config")
    variant = variant or next(iter(variants))
    if variant not in variants:
        near = did_you_mean(variant, variants)
        raise InputError(f"{file} has no variant {variant!r} (it has {', '.join(variants)}){near}")
    try:
        config = variants[variant]()
    except InputError as error:
        raise InputError(f"variant {variant!r} of {file} cannot be built: {error}") from None
    if not is_record(config):
        raise InputError(f"variant {variant!r} of {file} returns no config, a dataclass, but {config!r}")
    for own in (kind for kind in _types(config) if kind.__module__ == module.__name__):
        raise InputError(
            f"{file} defines {own.__name__} itself, and its runs could not be read without it: move {own.__name__} to a"
            " module beside it, and import it from there"
        )
    for name, (value, hint) in walk(config):
        typed(value, hint, f"{file}: {name}")
    return frozen(config), f"{path.stem}-{variant}"


def packages_of(config: Any) -> tuple[str, ...]:
    """The top-level packages, other than genjax, of the types in `config`; `allowed` makes prefixes of them."""
    packages = dict.fromkeys(kind.__module__.partition(".")[0] for kind in _types(config))
    return tuple(package for package in packages if package not in ("genjax", "__main__"))


def _types(node: Any) -> Iterator[type]:
    if is_record(node):
        yield type(node)
    for child in children(node).values() if is_node(node) else ():
        yield from _types(child.value)
