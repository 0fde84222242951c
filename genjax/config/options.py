"""Options as tyro knows them: the words of one become a value of its type, and the help lists them all.

A leaf of a config is an option. So is the kind of a field that takes one of several (`genjax.config.kinds`), which the
help lists beside the fields of the kind that is there.
"""

import contextlib
import dataclasses
import functools
import inspect
import io
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import docstring_parser
import flax.linen as nn
import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from genjax.config.hints import alternatives, did_you_mean, in_words, refusal
from genjax.config.kinds import is_open, kinds, takes_kinds, takes_words, type_name
from genjax.config.tree import MISSING, Value, children, is_node, kind_of
from genjax.config.values import typed
from genjax.errors import InputError

__all__ = ["kind_name", "print_help", "value_of"]


def value_of(name: str, words: Sequence[str], leaf: Value) -> Any:
    """The value that `words` spell for a leaf. Raises `InputError` for words that do not fit its type."""
    accepted = _settable(leaf.hint, leaf.value)
    if accepted is None:
        raise InputError(f"--{name} cannot be set on the command line, only in the config file")
    if not words and leaf.hint is bool:
        words = ["True"]
    # With "=", a single word may begin with a hyphen.
    arguments = [f"--{name}={words[0]}"] if len(words) == 1 else [f"--{name}", *words]
    field = StructFieldSpec(name=name, type=accepted, default=tyro.MISSING)
    alone = StructConstructorSpec(fields=(field,), instantiate=lambda **parsed: parsed[name])
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            value = _tyro(arguments, lambda info: alone if info.type is _Root else None, _Root(()))
        except SystemExit:
            if not words:
                raise InputError(f"--{name} needs a value: {in_words(accepted)}") from None
            if takes_kinds(leaf.hint):
                there = kinds(leaf.hint)
                taken = f"{in_words(accepted)} or one of {', '.join(there)}"
                near = did_you_mean(" ".join(words), there)
                raise InputError(f"--{name} takes {taken}, not {' '.join(words)!r}{near}") from None
            raise refusal(f"--{name}", accepted, " ".join(words)) from None
    return typed(value, leaf.hint, f"--{name}")


def _settable(hint: Any, value: Any) -> Any:
    """What of a leaf's type words can spell, as `float | None` of `float | Schedule | None`; None if nothing."""
    spelled = tuple(option for option in alternatives(hint) if _spelled(option)) or (type(value),)
    return Union[spelled] if _spelled(spelled[0]) and spelled != (type(None),) else None  # noqa: UP007


def _spelled(hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return True
    inner = [option for option in get_args(hint) if option is not Ellipsis]
    return all(map(_spelled, inner)) if inner else hint in (int, float, str, bool, type(None), tuple, dict)


def print_help(groups: Sequence[Any]) -> None:
    """Print every option of the groups with its type, default and meaning, and the kinds to choose from; and exit."""
    _tyro(["--help"], _struct, _Root(groups), kind_of(groups[0]).__doc__)


def kind_name(held: Value) -> str:
    """The name by which the kind of a value is chosen."""
    kind = kind_of(held.value)
    return next((name for name, other in kinds(held.hint).items() if other is kind), type_name(kind))


def _struct(info: StructTypeInfo) -> StructConstructorSpec | None:
    """tyro's view of a node, for the help: its children are options, and so is the kind of one that can be chosen."""
    node = info.default
    if isinstance(node, _Root):
        parts = [
            StructFieldSpec(name=str(index), type=Annotated[type(group), tyro.conf.arg(name="")], default=group)
            for index, group in enumerate(node.groups)
        ]
        return StructConstructorSpec(fields=tuple(parts), instantiate=dict)
    if not is_node(node):
        return None
    parts = []
    for name, (value, hint) in children(node).items():
        if takes_kinds(hint):
            meaning = functools.partial(_meaning_of_choice, kind_of(node), name, hint)
            spelled = ",".join((*kinds(hint), *(["..."] if takes_words(hint) else [])))
            choice = Annotated[str, tyro.conf.arg(name=name, metavar=f"{{{spelled}}}")]
            chosen = kind_name(Value(value, hint)) if is_node(value) else str(value)
            chosen = tyro.MISSING if value is MISSING else chosen
            parts.append(StructFieldSpec(name=f"{name} kind", type=choice, default=chosen, helptext=meaning))
            if not is_node(value):
                continue
        meaning = functools.partial(_meaning, kind_of(node), name, kind_of(value))
        accepted = type(value) if is_node(value) else _settable(hint, value) or tyro.conf.Fixed[type(value)]
        default = tyro.MISSING if value is MISSING else value
        parts.append(StructFieldSpec(name=name, type=accepted, default=default, helptext=meaning))
    return StructConstructorSpec(fields=tuple(parts), instantiate=dict)


def _meaning(kind: type, name: str, held: type) -> str:
    """The docstring below a field of a dataclass, and the type of the dataclass it holds."""
    held_type = f" ({held.__name__})" if dataclasses.is_dataclass(held) else ""
    return (_meanings(kind).get(name, "") + held_type).strip()


def _meaning_of_choice(kind: type, name: str, hint: Any) -> str:
    """The docstring below a field, or else the first line of those of the protocols it is declared with."""
    documented = [inspect.cleandoc(option.__doc__ or "") for option in alternatives(hint) if is_open(option)]
    return _meanings(kind).get(name) or " ".join(text.partition("\n")[0] for text in documented)


@functools.cache
def _meanings(kind: type) -> dict[str, str]:
    kinds = [base for base in reversed(kind.__mro__) if dataclasses.is_dataclass(base) and base is not nn.Module]
    documented = [part for base in kinds for part in docstring_parser.parse_from_object(base).params]
    return {part.arg_name: " ".join((part.description or "").split()) for part in documented}


@dataclasses.dataclass(frozen=True)
class _Root:
    """The groups whose fields are named on the command line without a prefix."""

    groups: Sequence[Any]


def _tyro(arguments: Sequence[str], rule: Callable, root: _Root, description: str | None = None) -> Any:
    """What tyro makes of the arguments; SystemExit where it prints the help or refuses them."""
    registry = ConstructorRegistry()
    registry.struct_rule(rule)
    return tyro.cli(
        _Root,
        args=arguments,
        default=root,
        description=description,
        registry=registry,
        config=(tyro.conf.FlagConversionOff,),
        use_underscores=True,
    )
