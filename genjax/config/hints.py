"""Declared types as values that can be asked: what they are made of, and what they accept, said in words."""

import collections.abc
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from genjax.errors import InputError

__all__ = [
    "MAPPINGS",
    "TUPLES",
    "UNIONS",
    "alternatives",
    "did_you_mean",
    "in_words",
    "item_hint",
    "join",
    "refusal",
    "same_spelling",
    "shown",
]

UNIONS = (typing.Union, types.UnionType)
TUPLES = (tuple, collections.abc.Sequence)
MAPPINGS = (dict, collections.abc.Mapping)


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The types of which a value may have one: those of a union, or `hint` itself."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return alternatives(options[0])
    if origin in UNIONS:
        return tuple(alternative for option in options for alternative in alternatives(option))
    return (type(None) if hint is None else hint,)


def item_hint(hint: Any, index: int) -> Any:
    """The declared type of item `index` of a tuple (or of any value of a dict) declared as `hint`."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in UNIONS or origin is Annotated:
        return next((item for item in (item_hint(option, index) for option in options) if item is not Any), Any)
    if origin in MAPPINGS:
        return options[1]
    if origin in TUPLES:
        return options[0] if origin is not tuple or options[-1:] == (Ellipsis,) else options[index]
    return Any


def in_words(hint: Any) -> str:
    """What `hint` accepts, for a sentence: "an int", "one of euler, heun", "a float or None"."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return in_words(options[0])
    if origin is Literal:
        return "one of " + ", ".join(map(str, options))
    if origin in UNIONS:
        return " or ".join(map(in_words, options))
    if origin in TUPLES:
        many = origin is not tuple or options[-1:] == (Ellipsis,)
        return f"any number of values ({in_words(options[0])} each)" if many else " and ".join(map(in_words, options))
    if origin in MAPPINGS:
        return f"names with values ({in_words(options[1])} each)"
    return _IN_WORDS.get(hint) or _a(getattr(hint, "__name__", str(hint)))


_IN_WORDS = {int: "an int", float: "a float", str: "a string", bool: "True or False", type(None): "None"}


def shown(value: Any) -> str:
    """`value` on one line: itself when it is plain data, or its type."""
    plain = isinstance(value, str | int | float | tuple | list | Mapping | None)
    return repr(value) if plain else _a(type(value).__name__)


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
    """`"; did you mean X?"` with the accepted name nearest to `name`, or nothing when none is near.

    Case, hyphens and underscores count for nothing.
    """
    accepted = list(accepted)
    spelled = {same_spelling(candidate): candidate for candidate in reversed(accepted)}
    same_end = [candidate for candidate in accepted if candidate.endswith("." + name)]
    near = same_end or [spelled[match] for match in difflib.get_close_matches(same_spelling(name), spelled, n=1)]
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def same_spelling(name: str) -> str:
    """What the spellings of a name have in common: `dpmpp_2m`, `dpmpp-2m` and `DPMpp2M` are one."""
    return name.replace("-", "").replace("_", "").lower()


def join(where: str, name: str) -> str:
    """The dotted name of `name` below `where`."""
    return f"{where}.{name}" if where else name
