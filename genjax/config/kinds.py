"""Kinds: the dataclasses that a field may hold, found by name.

A field declared with a protocol (or an abstract class) holds any dataclass that conforms to it; one declared with a
union holds any of its members. What can be chosen for it by name are the frozen dataclasses and Linen modules in the
protocol's own room, the package of its module: no registry, a new kind is a new dataclass in that room. A dotted path
names a kind of any other package that is allowed.

    times: TimeDensity        Uniform, LogitNormal, Mode, CosMap, ...     from the modules of genjax.diffusion
    data: Digits | Folder     Digits, Folder
    rival: Player | None      Player, None

A kind conforms when it inherits from the protocol, or when it has all members of it that do not begin with `_`, and all
methods of it such as `__call__`.
"""

import abc
import dataclasses
import functools
import importlib
import inspect
import pkgutil
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import flax.linen as nn

from genjax.config.hints import alternatives, did_you_mean, join, same_spelling
from genjax.errors import InputError, placed

__all__ = [
    "GENJAX",
    "Field",
    "Room",
    "conforms",
    "construct",
    "dataclass_named",
    "fields",
    "is_open",
    "is_protocol",
    "kind_named",
    "kinds",
    "lacking",
    "members",
    "room",
    "takes_kinds",
    "takes_words",
    "type_name",
]

GENJAX = ("genjax.",)
"""Prefixes of the names of the types that are accepted wherever nothing else is said."""


# ---------------------------------------------------------------------------------------------- a kind and its fields


class Field(NamedTuple):
    """A field of a dataclass: its resolved type, what makes its default, and whether it leaves the arithmetic alone."""

    hint: Any
    default: Callable[[], Any] | None
    may_change: bool

    @property
    def required(self) -> bool:
        return self.default is None


@functools.cache
def fields(kind: type) -> dict[str, Field]:
    """The fields one gives to construct the dataclass `kind`; of a Linen module, its own only."""
    hidden = {"parent", "name"} if issubclass(kind, nn.Module) else ()
    hints = typing.get_type_hints(kind, include_extras=True)
    return {
        field.name: Field(hints[field.name], _default(field), bool(field.metadata.get("may_change")))
        for field in dataclasses.fields(kind)
        if field.init and field.name not in hidden
    }


def _default(field: dataclasses.Field) -> Callable[[], Any] | None:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory
    return None if field.default is dataclasses.MISSING else lambda: field.default


def construct(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """`kind(**values)`. Raises `InputError` where a field without a default is not among the values.

    A refusal that begins with the name of a field is told with `where` before it (`placed`), as in
    `critic_optimizer.learning_rate of Adam is positive, not -1.0`.
    """
    for name, field in fields(kind).items():
        if field.required and name not in values:
            raise InputError(f"{join(where, name)} is missing: {type_name(kind)} needs it and has no default for it")
    with placed(where, kind):
        return kind(**values)


def type_name(kind: type) -> str:
    """The dotted path to `kind`."""
    return f"{kind.__module__}.{kind.__qualname__}"


# ------------------------------------------------------------------------------------------------------ what conforms


def is_open(hint: Any) -> bool:
    """Whether `hint` is a protocol or an abstract class of some room, and not one of Python's own."""
    kind = typing.get_origin(hint) or hint
    if not isinstance(kind, type) or kind.__module__.partition(".")[0] in sys.stdlib_module_names:
        return False
    return is_protocol(kind) or abc.ABC in kind.__bases__ or inspect.isabstract(kind)


def is_protocol(kind: Any) -> bool:
    """Whether a type is a protocol, which other kinds conform to without inheriting it."""
    return bool(getattr(kind, "_is_protocol", False))


def conforms(kind: type, hint: Any) -> bool:
    """Whether instances of the dataclass `kind` fit the protocol, abstract class or class `hint`."""
    wanted = typing.get_origin(hint) or hint
    if wanted in kind.__mro__:
        return True
    return bool(members(wanted)) and not lacking(kind, wanted) if is_protocol(wanted) else issubclass(kind, wanted)


def lacking(kind: type, protocol: type) -> list[str]:
    """The members of `protocol` that `kind` lacks."""
    there = set(kind.__dataclass_fields__).union(*(vars(base) for base in kind.__mro__ if base is not object))
    return [name for name in members(protocol) if name not in there]


@functools.cache
def members(protocol: type) -> tuple[str, ...]:
    """The names that `protocol` asks for."""
    names = {}
    for base in protocol.__mro__:
        if is_protocol(base) and base is not Protocol:
            special = {name for name, value in vars(base).items() if name.startswith("__") and callable(value)}
            special -= vars(_Empty).keys() | {"__annotate__", "__annotate_func__"}
            public = [n for n in (*inspect.get_annotations(base), *vars(base)) if not n.startswith("_")]
            names |= dict.fromkeys([*public, *sorted(special)])
    return tuple(names)


class _Empty(Protocol):
    """What every protocol has."""


# ------------------------------------------------------------------------------------------------------- what there is


class Room(NamedTuple):
    """The kinds in the room of a protocol, and the modules there that cannot be imported, with the reason."""

    kinds: tuple[type, ...]
    failures: tuple[str, ...]


@functools.cache
def room(protocol: type) -> Room:
    """The kinds that conform to `protocol` in the modules of its package, which are imported for it."""
    own = sys.modules[protocol.__module__]
    package = own.__name__ if hasattr(own, "__path__") else own.__name__.rpartition(".")[0]
    modules, failures = {own.__name__: own}, []
    if package:
        inside = importlib.import_module(package)
        for found in pkgutil.iter_modules(inside.__path__, f"{package}."):
            if found.name.rpartition(".")[2].startswith("_"):
                continue
            try:
                modules[found.name] = importlib.import_module(found.name)
            except Exception as error:  # An optional module, or one that somebody is at work on: told, but not fatal.
                failures.append(f"{found.name} cannot be imported: {' '.join(str(error).split())}")
        modules[package] = inside
    kinds = (kind for _, module in sorted(modules.items()) for kind in _defined(module))
    return Room(tuple(kind for kind in kinds if _is_kind(kind) and conforms(kind, protocol)), tuple(failures))


def _defined(module: Any) -> Iterable[type]:
    there = (value for name, value in list(vars(module).items()) if not name.startswith("_"))
    return (value for value in there if isinstance(value, type) and value.__module__ == module.__name__)


def _is_kind(kind: type) -> bool:
    if not dataclasses.is_dataclass(kind) or inspect.isabstract(kind) or is_protocol(kind):
        return False
    return kind.__dataclass_params__.frozen or issubclass(kind, nn.Module)


def takes_kinds(hint: Any) -> bool:
    """Whether what a field declared as `hint` holds is chosen by name; imports nothing."""
    options = alternatives(hint)
    closed = [option for option in options if dataclasses.is_dataclass(option) and not is_open(option)]
    return any(map(is_open, options)) or len(closed) > 1 or (bool(closed) and type(None) in options)


def takes_words(hint: Any) -> bool:
    """Whether `hint` takes more than kinds and None, as `float | Schedule` does."""
    return not all(
        option is type(None) or is_open(option) or dataclasses.is_dataclass(option) for option in alternatives(hint)
    )


def kinds(hint: Any) -> dict[str, type]:
    """The kinds that a field declared as `hint` takes, by name; `None` is one where the field takes it.

    Two kinds of one name go by their dotted paths.
    """
    found: dict[type, None] = {}
    for option in alternatives(hint):
        if is_open(option):
            found |= dict.fromkeys(room(typing.get_origin(option) or option).kinds)
        elif dataclasses.is_dataclass(option):
            found[option] = None
    names = [same_spelling(kind.__name__) for kind in found]
    named = {k.__name__ if names.count(same_spelling(k.__name__)) == 1 else type_name(k): k for k in found}
    return named | ({"None": type(None)} if type(None) in alternatives(hint) else {})


# ----------------------------------------------------------------------------------------------------------- by name


def kind_named(word: str, hint: Any, where: str, allow: Sequence[str] = GENJAX) -> type | None:
    """The kind that `word` names at `where`, which is declared as `hint`: by its name, or by a dotted path.

    The type of None where `word` is "None", and None where `word` names no kind but `hint` takes other values too.
    Raises `InputError` where it is neither.
    """
    there = kinds(hint)
    named = {same_spelling(name): kind for name, kind in there.items()}.get(same_spelling(word))
    if named is not None:
        return named
    is_path = "." in word and all(part.isidentifier() for part in word.split("."))
    if takes_words(hint) and (not is_path or str in alternatives(hint)):
        return None
    listed = f"one of {', '.join(there)}" if there else f"the dotted path to {_protocols(hint)}"
    failures = [
        told
        for option in alternatives(hint)
        if is_open(option)
        for told in room(typing.get_origin(option) or option).failures
    ]
    untold = f" ({'; '.join(failures)})" if failures else ""
    if is_path:
        kind = dataclass_named(word, where, allow)
        fitting = [o for o in (typing.get_origin(o) or o for o in alternatives(hint)) if isinstance(o, type)]
        if any(conforms(kind, option) for option in fitting):
            return kind
        lacked = [name for option in fitting if is_protocol(option) for name in lacking(kind, option)]
        why = f": it has no {', '.join(lacked)}" if lacked else ""
        raise InputError(f"{where} takes {listed}{untold}, or one like them, and {word} is none{why}")
    if not word:
        raise InputError(f"{where} needs a value: {listed}{untold}")
    raise InputError(f"{where} takes {listed}, not {word!r}{untold}{did_you_mean(word, there)}")


def _protocols(hint: Any) -> str:
    return " or ".join(f"a kind of {option.__name__}" for option in alternatives(hint) if is_open(option))


def dataclass_named(name: Any, where: str, allow: Sequence[str]) -> type:
    """The dataclass at the dotted path `name`, which is imported only where a prefix of it is among `allow`."""
    refused = f"{where or 'the config'} cannot be of type {name!r}: "
    if not isinstance(name, str) or not name.startswith(tuple(allow)):
        accepted = f"only types of {', '.join(prefix.rstrip('.') for prefix in allow)} are accepted"
        raise InputError(refused + accepted + _how_to_allow(name))
    module, _, attribute = name.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        top = name.partition(".")[0]
        absent = f"; there is no package {top} on Python's path (PYTHONPATH)" if error.name == top else ""
        raise InputError(refused + "there is no such type" + absent) from None
    except AttributeError:
        raise InputError(refused + "there is no such type") from None
    if not isinstance(kind, type) or not dataclasses.is_dataclass(kind) or not type_name(kind).startswith(tuple(allow)):
        raise InputError(refused + "it is not a dataclass of an accepted module")
    return kind


def _how_to_allow(name: Any) -> str:
    package = name.partition(".")[0] if isinstance(name, str) else ""
    if not package.isidentifier() or package in sys.stdlib_module_names:
        return ""
    return f"; name its package with --allow {package} to import it, which runs its code"
