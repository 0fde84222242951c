"""A config as a tree of named, typed values.

Nodes are dataclasses, non-empty dicts with string keys, and tuples that hold a dataclass; all else is a leaf, named by
the path to it: `train.steps`, `model.blocks.0.depth`. A Linen module is a node like any other: its fields are its
hyper-parameters, without the `parent` and `name` that Linen adds.

A field may be marked as one that changes nothing of the arithmetic, and with it all that lies below it:

    remat: str = dataclasses.field(default="full", metadata={"may_change": True})
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from genjax.config.hints import did_you_mean, item_hint, join
from genjax.config.kinds import GENJAX, construct, fields, kind_named, takes_kinds
from genjax.config.values import FrozenDict, typed
from genjax.errors import InputError

__all__ = [
    "MISSING",
    "Draft",
    "Value",
    "children",
    "choose",
    "frozen",
    "is_node",
    "is_record",
    "kind_of",
    "leaves",
    "may_change",
    "override",
    "place",
    "walk",
]

Config = TypeVar("Config")


class Value(NamedTuple):
    """A value in a config and the type it is declared with."""

    value: Any
    hint: Any


class Draft:
    """A dataclass that is not built yet: its kind, and its fields by name, `MISSING` where one has to be given."""

    def __init__(self, kind: type, parts: Mapping[str, Any]):
        self.kind, self.parts = kind, parts

    @classmethod
    def of_defaults(cls, kind: type) -> "Draft":
        return cls(kind, {name: field.default() if field.default else MISSING for name, field in fields(kind).items()})


class _Missing:
    def __repr__(self) -> str:
        return "a value that is missing"


MISSING = _Missing()
"""What a draft holds where a field without a default has not been given."""


# -------------------------------------------------------------------------------------------------- what there is in it


def leaves(config: Any) -> dict[str, Value]:
    """Every leaf of `config` by its dotted name, in the order of declaration."""
    return {name: leaf for name, leaf in walk(config) if not is_node(leaf.value)}


def walk(node: Any, hint: Any = Any, prefix: str = "") -> Iterable[tuple[str, Value]]:
    """Every node and leaf below `node` by its dotted name, a node before what lies below it."""
    for key, child in children(node, hint).items():
        yield prefix + key, child
        if is_node(child.value):
            yield from walk(child.value, child.hint, f"{prefix}{key}.")


def is_record(value: Any) -> bool:
    """Whether a value is a dataclass, or the draft of one."""
    return isinstance(value, Draft) or (dataclasses.is_dataclass(value) and not isinstance(value, type))


def is_node(value: Any) -> bool:
    """Whether a value has fields or entries of its own that a dotted name can lead to."""
    if isinstance(value, Mapping):
        return bool(value) and all(isinstance(key, str) for key in value)
    return is_record(value) or (isinstance(value, tuple) and any(map(is_record, value)))


def kind_of(value: Any) -> type:
    """The type of `value`, or what a draft is a draft of."""
    return value.kind if isinstance(value, Draft) else type(value)


def children(node: Any, hint: Any = Any) -> dict[str, Value]:
    """What a node, declared as `hint`, holds directly below it, by name."""
    if isinstance(node, Mapping):
        return {key: Value(value, item_hint(hint, 0)) for key, value in node.items()}
    if isinstance(node, tuple):
        return {str(index): Value(value, item_hint(hint, index)) for index, value in enumerate(node)}
    parts = node.parts if isinstance(node, Draft) else {name: getattr(node, name) for name in fields(type(node))}
    return {name: Value(parts[name], field.hint) for name, field in fields(kind_of(node)).items()}


def may_change(config: Any, name: str) -> bool:
    """Whether the field at the dotted `name`, or one around it, is marked as changing nothing of the arithmetic."""
    marked = {key for key, field in fields(type(config)).items() if field.may_change} if is_record(config) else ()
    for key, (value, _) in children(config).items():
        if name == key or name.startswith(key + "."):
            below = name[len(key) + 1 :]
            return key in marked or (bool(below) and is_node(value) and may_change(value, below))
    return False


# ---------------------------------------------------------------------------------------------------------- changing it


def override(config: Config, changes: Mapping[str, Any], *, allow: Sequence[str] = GENJAX) -> Config:
    """`config` with the values at some dotted names replaced, each checked against its declared type.

    `override(config, {"train.steps": 5, "model": MMDiT(depth=2)})`. An int given for a float becomes a float. Where
    kinds can be chosen (`genjax.config.kinds`) a name chooses one, with its defaults, and other changes set its fields:
    `override(config, {"process": "VP", "process.beta_max": 20.0})`; a dotted path begins with one of the prefixes
    `allow`. Naming the kind that is there already changes nothing.

    Raises `InputError` for an unknown name or a value of the wrong type; a dataclass may raise its own when rebuilt.
    """
    draft = config
    for name in sorted(changes, key=lambda name: name.count(".")):
        held = dict(walk(draft)).get(name)
        if held is None:
            near = did_you_mean(name, leaves(draft)) or f"; the config has {', '.join(children(draft))}"
            raise InputError(f"{name} is not a field of this config{near}")
        draft, chosen = choose(draft, name, changes[name], allow=allow)
        draft = draft if chosen else place(draft, {name: typed(changes[name], held.hint, name)})
    return frozen(draft)


def choose(draft: Any, name: str, value: Any, *, where: str = "", allow: Sequence[str] = GENJAX) -> tuple[Any, bool]:
    """`draft`, a config or a draft of one, with the kind at the dotted `name` that `value` names, and whether it did.

    A kind other than the one there comes with its defaults. Where other words are given in the place of a kind, the
    draft then holds `MISSING`. Raises `InputError`, naming `where + name`, for words that the field does not take.
    """
    held = dict(walk(draft)).get(name)
    if held is None or not isinstance(value, str) or not takes_kinds(held.hint):
        return draft, False
    kind = kind_named(value, held.hint, where + name, allow)
    if kind is None:
        return (place(draft, {name: MISSING}) if is_node(held.value) else draft), False
    if kind is kind_of(held.value):
        return draft, True
    return place(draft, {name: None if kind is type(None) else Draft.of_defaults(kind)}), True


def place(node: Any, changes: Mapping[str, Any], prefix: str = "") -> Any:
    """A draft of `node` with other values at some dotted names, of which an outer one is placed before an inner one."""
    if not changes:
        return node
    parts = {}
    for key, (value, _) in children(node).items():
        name = prefix + key
        value = changes.get(name, value)
        below = is_node(value) and any(change.startswith(f"{name}.") for change in changes)
        parts[key] = place(value, changes, f"{name}.") if below else value
    if isinstance(node, Mapping):
        return parts
    return tuple(parts.values()) if isinstance(node, tuple) else Draft(kind_of(node), parts)


def frozen(config: Config) -> Config:
    """`config` with its drafts built and its dicts turned into `FrozenDict`s, so that it can be hashed."""
    return _frozen(config, "")


def _frozen(value: Any, where: str) -> Any:
    if _is_frozen(value):
        return value
    if isinstance(value, Mapping):
        return FrozenDict({key: _frozen(item, join(where, key)) for key, item in value.items()})
    if isinstance(value, tuple):
        return tuple(_frozen(item, join(where, str(index))) for index, item in enumerate(value))
    given = {name: child.value for name, child in children(value).items() if child.value is not MISSING}
    return construct(kind_of(value), {n: _frozen(part, join(where, n)) for n, part in given.items()}, where)


def _is_frozen(value: Any) -> bool:
    if isinstance(value, Draft) or (isinstance(value, Mapping) and not isinstance(value, FrozenDict)):
        return False
    if isinstance(value, Mapping):
        return all(map(_is_frozen, value.values()))
    if is_record(value):
        return all(_is_frozen(child.value) for child in children(value).values())
    return all(map(_is_frozen, value)) if type(value) is tuple else True
