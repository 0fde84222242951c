"""The command line of the front doors.

A door has options of its own, the fields of a frozen dataclass; `train.py` also takes every leaf of the chosen config:

    python train.py --config configs/sd3.py:medium --workdir runs/x --model.depth 6 --train.batch_size=32

Written `--name value` or `--name=value`, with underscores or hyphens; a boolean takes `True` or `False` and alone means
`True`; a tuple takes its values one after another. The types of nested dataclasses are fixed by the config file.

A config file is Python and defines `VARIANTS`, a dict of functions without arguments that return a config; the first
is the default.

tyro turns words into values and writes the help. What it would refuse in a box is refused here in one sentence: names
are checked before tyro sees them, and a value that it refuses is found by giving it the options one at a time.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import docstring_parser
import flax.linen as nn
import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from genjax.config.tree import Value, children, did_you_mean, in_words, is_node, leaves, override, refusal, typed
from genjax.errors import InputError

Options = TypeVar("Options")


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Call `main` with the arguments of the process; bad input is told in one line on stderr, with exit code 2."""
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def parse(argv: Sequence[str], options: Options) -> Options:
    """`options`, a dataclass instance that holds the defaults, with what `argv` says.

    `--help` prints every option with its type, default and meaning (the docstring below the field) and exits.
    Raises `InputError` in one sentence for anything that is not accepted.
    """
    return _parsed(_given(argv), options, None)[0]


def parse_with_config(argv: Sequence[str], options: Options) -> tuple[Options, Any, str]:
    """As `parse`, and the config named by the option `config`, with the fields that `argv` overrides.

    Returns (options, config, the name of the config as `load` gives it).
    """
    given = _given(argv)
    spec = given.get("config") or [options.config]
    config, name = load(" ".join(spec))
    options, config = _parsed(given, options, config)
    return options, config, name


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
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    variants = getattr(module, "VARIANTS", None)
    if not isinstance(variants, Mapping) or not variants:
        raise InputError(f"{file} is not a config file: it defines no VARIANTS, a dict of functions returning a config")
    variant = variant or next(iter(variants))
    if variant not in variants:
        near = did_you_mean(variant, variants)
        raise InputError(f"{file} has no variant {variant!r} (it has {', '.join(variants)}){near}")
    return variants[variant](), f"{path.stem}-{variant}"


def _given(argv: Sequence[str]) -> dict[str, list[str]]:
    """The words after each `--name`, by name with underscores; `help` stands for `-h` as well."""
    given: dict[str, list[str]] = {}
    words: list[str] | None = None
    for word in argv:
        if word == "-h" or word.startswith("--"):
            flag, equals, value = word.partition("=")
            name = "help" if flag == "-h" else flag[2:].replace("-", "_")
            if name in given and name != "help":
                raise InputError(f"{flag} is given twice")
            words = given[name] = [value] if equals else []
        elif words is None:
            raise InputError(f"{word!r} is not an option: options are written --name value")
        else:
            words.append(word)
    return given


def _parsed(given: Mapping[str, list[str]], options: Options, config: Any) -> tuple[Options, Any]:
    groups = [options] if config is None else [options, config]
    own, shared = leaves(options), {} if config is None else leaves(config)
    if own.keys() & shared.keys():
        raise TypeError(f"both the options and the config have {', '.join(own.keys() & shared.keys())}")
    known = own | shared
    if "help" in given:
        _tyro(["--help"], groups)
    # A name may hold hyphens where it is a key of a dict.
    spelled = {name.replace("-", "_"): name for name in known}
    for name in given:
        if name not in spelled:
            raise _unknown(name, known)
    given = {spelled[name]: words for name, words in given.items()}
    given = {name: ["True"] if not words and known[name].hint is bool else words for name, words in given.items()}
    # With "=", a single word may begin with a hyphen.
    arguments = {n: [f"--{n}={words[0]}"] if len(words) == 1 else [f"--{n}", *words] for n, words in given.items()}
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            values = _tyro([word for argument in arguments.values() for word in argument], groups)
        except SystemExit:
            name = next(name for name in given if _is_refused(arguments[name], groups))
            raise _refusal(name, given[name], known[name]) from None
    changes = {name: typed(values[name], known[name].hint, f"--{name}") for name in given}
    options = override(options, {name: value for name, value in changes.items() if name in own})
    overrides = {name: value for name, value in changes.items() if name in shared}
    return options, override(config, overrides) if overrides else config


def _unknown(name: str, known: Mapping[str, Any]) -> InputError:
    inside = [other for other in known if other.startswith(name + ".")]
    if inside:
        return InputError(f"--{name} is chosen by the config file; here one sets --{', --'.join(inside)}")
    kind = "a field of this config" if "." in name else "an option"
    near = did_you_mean(name, known, "--") or "; --help lists what there is"
    return InputError(f"--{name} is not {kind}{near}")


def _is_refused(argument: Sequence[str], groups: Sequence[Any]) -> bool:
    try:
        _tyro(argument, groups)
    except SystemExit:
        return True
    return False


def _refusal(name: str, words: Sequence[str], leaf: Value) -> InputError:
    accepted = _settable(leaf.hint, leaf.value)
    if accepted is None:
        return InputError(f"--{name} cannot be set on the command line, only in the config file")
    if not words:
        return InputError(f"--{name} needs a value: {in_words(accepted)}")
    return refusal(f"--{name}", accepted, " ".join(words))


@dataclasses.dataclass(frozen=True)
class _Root:
    """The groups whose fields are named on the command line without a prefix."""

    groups: Sequence[Any]


def _tyro(arguments: Sequence[str], groups: Sequence[Any]) -> dict[str, Any]:
    """The value of every leaf of `groups` by dotted name after `arguments`; SystemExit where tyro refuses them."""
    registry = ConstructorRegistry()
    registry.struct_rule(_struct)
    return tyro.cli(
        _Root,
        args=arguments,
        default=_Root(groups),
        description=type(groups[0]).__doc__,
        registry=registry,
        config=(tyro.conf.FlagConversionOff,),
        use_underscores=True,
    )


def _struct(info: StructTypeInfo) -> StructConstructorSpec | None:
    """tyro's view of a node: its children are options, and parsing gives the values of the leaves by dotted name."""
    node = info.default
    if isinstance(node, _Root):
        parts = [
            StructFieldSpec(name=str(index), type=Annotated[type(group), tyro.conf.arg(name="")], default=group)
            for index, group in enumerate(node.groups)
        ]
        return StructConstructorSpec(
            fields=tuple(parts),
            instantiate=lambda **parsed: {n: v for group in parsed.values() for n, v in group.items()},
        )
    if not is_node(node):
        return None
    held = children(node)

    def flat(**parsed: Any) -> dict[str, Any]:
        values = {}
        for name, value in parsed.items():
            values |= {f"{name}.{leaf}": v for leaf, v in value.items()} if is_node(held[name].value) else {name: value}
        return values

    parts = []
    for name, (value, hint) in held.items():
        accepted = type(value) if is_node(value) else _settable(hint, value) or tyro.conf.Fixed[type(value)]
        meaning = functools.partial(_meaning, type(node), name, type(value))
        parts.append(StructFieldSpec(name=name, type=accepted, default=value, helptext=meaning))
    return StructConstructorSpec(fields=tuple(parts), instantiate=flat)


def _settable(hint: Any, value: Any) -> Any:
    """What of a leaf's type words can spell, as `float | None` of `float | Schedule | None`; None if nothing."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    spelled = tuple(option for option in options if _spelled(option)) or (type(value),)
    return Union[spelled] if _spelled(spelled[0]) and spelled != (type(None),) else None  # noqa: UP007


def _spelled(hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return True
    inner = [option for option in get_args(hint) if option is not Ellipsis]
    return all(map(_spelled, inner)) if inner else hint in (int, float, str, bool, type(None), tuple, dict)


def _meaning(kind: type, name: str, held: type) -> str:
    """The docstring below a field of a dataclass, and the type of the dataclass it holds."""
    held_type = f" ({held.__name__})" if dataclasses.is_dataclass(held) else ""
    return (_meanings(kind).get(name, "") + held_type).strip()


@functools.cache
def _meanings(kind: type) -> dict[str, str]:
    kinds = [base for base in reversed(kind.__mro__) if dataclasses.is_dataclass(base) and base is not nn.Module]
    documented = [part for base in kinds for part in docstring_parser.parse_from_object(base).params]
    return {part.arg_name: " ".join((part.description or "").split()) for part in documented}
