"""A config as a tree of named, typed values.

Nodes are dataclasses, non-empty dicts with string keys, and tuples that hold a dataclass; all else is a leaf, named by
the path to it: `train.steps`, `model.blocks.0.depth`. A Linen module is a node like any other: its fields are its
hyper-parameters, without the `parent` and `name` that Linen adds.
"""

import collections.abc
import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import flax.linen as nn

from genjax.errors import InputError

Config = TypeVar("Config")


class Value(NamedTuple):
    """A value in a config and the type it is declared with."""

    value: Any
    hint: Any


def override(config: Config, changes: Mapping[str, Any]) -> Config:
    """`config` with the values at some dotted names replaced, each checked against its declared type.

    `override(config, {"train.steps": 5, "model": MMDiT(depth=2)})`. An int given for a float becomes a float. Raises
    `InputError` for an unknown name or a value of the wrong type; a dataclass may raise its own on being rebuilt.
    """
    known = dict(_walk(config, type(config), ""))
    for name in changes:
        if name not in known:
            near = did_you_mean(name, leaves(config)) or f"; the config has {', '.join(children(config))}"
            raise InputError(f"{name} is not a field of this config{near}")
    return _rebuilt(config, type(config), changes, "")


def _rebuilt(node: Any, hint: Any, changes: Mapping[str, Any], prefix: str) -> Any:
    parts = {}
    for key, (value, declared) in children(node, hint).items():
        name = prefix + key
        if name in changes:
            value = typed(changes[name], declared, name)
        if is_node(value) and any(change.startswith(name + ".") for change in changes):
            value = _rebuilt(value, declared, changes, name + ".")
        parts[key] = value
    if isinstance(node, Mapping):
        return parts
    return tuple(parts.values()) if isinstance(node, tuple) else type(node)(**parts)


def leaves(config: Any) -> dict[str, Value]:
    """Every leaf of `config` by its dotted name, in the order of declaration."""
    return {name: leaf for name, leaf in _walk(config, type(config), "") if not is_node(leaf.value)}


def _walk(node: Any, hint: Any, prefix: str) -> Iterable[tuple[str, Value]]:
    for key, child in children(node, hint).items():
        yield prefix + key, child
        if is_node(child.value):
            yield from _walk(child.value, child.hint, f"{prefix}{key}.")


def is_record(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def is_node(value: Any) -> bool:
    if isinstance(value, Mapping):
        return bool(value) and all(isinstance(key, str) for key in value)
    return is_record(value) or (isinstance(value, tuple) and any(map(is_record, value)))


def children(node: Any, hint: Any = Any) -> dict[str, Value]:
    """What a node, declared as `hint`, holds directly below it, by name."""
    if isinstance(node, Mapping):
        return {key: Value(value, _item_hint(hint, 0)) for key, value in node.items()}
    if isinstance(node, tuple):
        return {str(index): Value(value, _item_hint(hint, index)) for index, value in enumerate(node)}
    return {name: Value(getattr(node, name), field.hint) for name, field in fields(type(node)).items()}


class Field(NamedTuple):
    """A field of a dataclass: its resolved type, and whether it must be given."""

    hint: Any
    required: bool


@functools.cache
def fields(kind: type) -> dict[str, Field]:
    """The fields one gives to construct the dataclass `kind`; of a Linen module, its own only."""
    hidden = {"parent", "name"} if issubclass(kind, nn.Module) else ()
    hints = typing.get_type_hints(kind, include_extras=True)
    return {
        field.name: Field(hints[field.name], field.default is field.default_factory is dataclasses.MISSING)
        for field in dataclasses.fields(kind)
        if field.init and field.name not in hidden
    }


def typed(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type `hint`: an int becomes a float and a list a tuple, all else must fit as it is.

    A bool is no int and floats are finite, so that they survive JSON. Raises `InputError`, naming `where`.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where} takes a finite float, not {value}")
    wrong = refusal(where, hint, value)
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return typed(value, options[0], where)
    if origin is Literal:
        if any(value == option and type(value) is type(option) for option in options):
            return value
        raise wrong
    if origin in _UNIONS:
        if type(value) in options:
            return value
        for option in options:
            try:
                return typed(value, option, where)
            except InputError:
                continue
        raise wrong
    if origin in _TUPLES:
        many = origin is not tuple or options[-1:] == (Ellipsis,)
        if not isinstance(value, tuple | list) or not (many or len(value) == len(options)):
            raise wrong
        return tuple(typed(item, _item_hint(hint, i), f"{where}.{i}") for i, item in enumerate(value))
    if origin in _MAPPINGS:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise wrong
        return {key: typed(item, options[1], f"{where}.{key}") for key, item in value.items()}
    if hint is float and type(value) is int:
        return float(value)
    kind = type(None) if hint is None else origin or hint
    if kind is Any or not isinstance(kind, type) or getattr(kind, "_is_protocol", False):
        return value
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise wrong
    return value


_UNIONS = (typing.Union, types.UnionType)
_TUPLES = (tuple, collections.abc.Sequence)
_MAPPINGS = (dict, collections.abc.Mapping)
_IN_WORDS = {int: "an int", float: "a float", str: "a string", bool: "True or False", type(None): "None"}


def _item_hint(hint: Any, index: int) -> Any:
    """The declared type of item `index` of a tuple (or of any value of a dict) declared as `hint`."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in _UNIONS or origin is Annotated:
        return next((item for item in (_item_hint(option, index) for option in options) if item is not Any), Any)
    if origin in _MAPPINGS:
        return options[1]
    if origin in _TUPLES:
        return options[0] if origin is not tuple or options[-1:] == (Ellipsis,) else options[index]
    return Any


def in_words(hint: Any) -> str:
    """What `hint` accepts, for a sentence: "an int", "one of euler, heun", "a float or None"."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return in_words(options[0])
    if origin is Literal:
        return "one of " + ", ".join(map(str, options))
    if origin in _UNIONS:
        return " or ".join(map(in_words, options))
    if origin in _TUPLES:
        many = origin is not tuple or options[-1:] == (Ellipsis,)
        return f"any number of values ({in_words(options[0])} each)" if many else " and ".join(map(in_words, options))
    if origin in _MAPPINGS:
        return f"names with values ({in_words(options[1])} each)"
    return _IN_WORDS.get(hint) or _a(getattr(hint, "__name__", str(hint)))


def shown(value: Any) -> str:
    """`value` on one line: itself when it is plain data, or its type."""
    return (
        repr(value) if isinstance(value, str | int | float | tuple | list | dict | None) else _a(type(value).__name__)
    )


def _a(name: str) -> str:
    return f"an {name}" if name[0] in "AEIOUaeiou" else f"a {name}"


def refusal(where: str, hint: Any, value: Any) -> InputError:
    """The sentence that refuses `value` at `where`, which is declared as `hint`."""
    choices = [str(choice) for choice in _choices(hint)]
    near = did_you_mean(value, choices) if isinstance(value, str) else ""
    return InputError(f"{where} takes {in_words(hint)}, not {shown(value)}{near}")


def _choices(hint: Any) -> list:
    options = typing.get_args(hint)
    if hint is bool:
        return [True, False]
    return list(options) if typing.get_origin(hint) is Literal else [c for option in options for c in _choices(option)]


def did_you_mean(name: str, accepted: Iterable[str], prefix: str = "") -> str:
    """`"; did you mean X?"` with the accepted name nearest to `name`, or nothing when none is near."""
    accepted = list(accepted)
    lower = {candidate.lower(): candidate for candidate in reversed(accepted)}
    same_end = [candidate for candidate in accepted if candidate.endswith("." + name)]
    near = same_end or [lower[match] for match in difflib.get_close_matches(name.lower(), lower, n=1)]
    return f"; did you mean {prefix}{near[0]}?" if near else ""
