"""Values against their declared types: what fits, what is turned into what fits, and dicts that can be hashed.

A config is a static argument of compiled functions, so all of it can be hashed: its sequences are tuples and its
dicts are `FrozenDict`s.
"""

import math
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from genjax.config.hints import MAPPINGS, TUPLES, UNIONS, item_hint, refusal
from genjax.config.kinds import conforms, construct, is_open, is_protocol, kind_named, takes_kinds, takes_words
from genjax.errors import InputError

__all__ = ["FrozenDict", "hashable", "typed"]


class FrozenDict(Mapping):
    """A dict that does not change, and so has a hash; equal to a dict of the same items."""

    def __init__(self, items: Mapping[str, Any] | None = None):
        self._items = dict(items or {})

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)


def hashable(value: Any) -> Any:
    """`value` with every dict in it a `FrozenDict` and every list a tuple; what lies inside of dataclasses stays."""
    if isinstance(value, Mapping):
        return FrozenDict({key: hashable(item) for key, item in value.items()})
    return tuple(map(hashable, value)) if type(value) in (tuple, list) else value


def typed(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type `hint`: an int becomes a float, a list a tuple, a dict a `FrozenDict`, and the name of a kind
    that kind; all else must fit as it is.

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
    if isinstance(value, str) and takes_kinds(hint) and not takes_words(hint):
        kind = kind_named(value, hint, where)
        return None if kind is type(None) else construct(kind, {}, where)
    if origin in UNIONS:
        if type(value) in options:
            return value
        for option in options:
            try:
                return typed(value, option, where)
            except InputError:
                continue
        raise wrong
    if origin in TUPLES:
        many = origin is not tuple or options[-1:] == (Ellipsis,)
        if not isinstance(value, tuple | list) or not (many or len(value) == len(options)):
            raise wrong
        return tuple(typed(item, item_hint(hint, i), f"{where}.{i}") for i, item in enumerate(value))
    if origin in MAPPINGS:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise wrong
        return FrozenDict({key: typed(item, options[1], f"{where}.{key}") for key, item in value.items()})
    if hint is float and type(value) is int:
        return float(value)
    kind = type(None) if hint is None else origin or hint
    if is_protocol(kind):
        is_dataclass = hasattr(type(value), "__dataclass_fields__")
        # A protocol of Python's own, such as typing.SupportsFloat, takes plain values too.
        if not conforms(type(value), kind) if is_dataclass else is_open(kind):
            raise wrong
        return hashable(value)
    if kind is Any or not isinstance(kind, type):
        return hashable(value)
    if kind in MAPPINGS and isinstance(value, Mapping):
        return hashable(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise wrong
    return hashable(value)
