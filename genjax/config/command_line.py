"""The command line of the front doors.

A door has options of its own, the fields of a frozen dataclass, and may take a second group of them that follows from
the first: `train.py` takes every leaf of the config at `--config`, `sample.py` what the run at `--workdir` is asked.

    python train.py --config configs/sd3.py:medium --workdir runs/x --model.depth 6 --process VP --process.beta_max=20

Written `--name value` or `--name=value` in any order, with underscores or hyphens; a boolean takes `True` or `False`
and alone means `True`; a tuple takes its values one after another. A field that holds one of several kinds takes the
name of one (`genjax.config.kinds`); the types of all other dataclasses are fixed by the config file.

tyro turns words into values, and lays out and prints the help. By hand is only what it lacks:

    kinds             tyro chooses a member of a union by a positional word, before its options; here it is an option
                      like any other, its choices are found in a room, and the fields of the chosen kind follow
    two groups        the second has fields that only the values of the first tell
    one sentence      tyro refuses in a box, over several lines; so each option is given to it alone, and names are
                      checked before it sees them
"""

import contextlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from genjax.config.files import load, packages_of
from genjax.config.hints import did_you_mean
from genjax.config.kinds import GENJAX, fields, kinds, takes_kinds, type_name
from genjax.config.options import kind_name, print_help, value_of
from genjax.config.record import allowed
from genjax.config.tree import MISSING, Value, children, choose, frozen, is_node, kind_of, leaves, place, walk
from genjax.errors import InputError

__all__ = ["parse", "parse_with", "parse_with_config", "run"]

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
    return parse_with(argv, options)[0]


def parse_with_config(argv: Sequence[str], options: Options) -> tuple[Options, Any, str]:
    """As `parse`, and the config named by the option `config`, with the fields that `argv` overrides.

    Returns (options, config, the name of the config as `load` gives it).
    """
    name = ""

    def config(options: Any) -> Any:
        nonlocal name
        config, name = load(options.config)
        return config

    options, config = parse_with(argv, options, config)
    return options, config, name


def parse_with(
    argv: Sequence[str], options: Options, second: Callable[[Options], Any] | None = None
) -> tuple[Options, Any]:
    """As `parse`, and what `second` gives for these options: a dataclass instance that holds the defaults of more.

    Both groups are one to those who use them, and in one `--help`; they share no name. Dotted paths to kinds may begin
    with genjax, with a package of the second group, or with one that an option `allow` names. Returns (options, second
    group). Raises `InputError` as `parse` does, and what `second` raises.
    """
    given = _given(argv)
    asks_for_help = given.pop("help", None) is not None
    first = {name: words for name, words in given.items() if name.partition(".")[0] in children(options)}
    rest = {name: words for name, words in given.items() if name not in first}
    groups = [options]
    try:
        groups[0], values = _chosen(first, options, GENJAX)
        _refuse_unknown(values, groups)
        options = _filled(groups[0], values)
        config = None if second is None else second(options)
        if config is not None:
            clash = children(options).keys() & children(config).keys()
            if clash:
                raise TypeError(f"both the options and the second group have {', '.join(sorted(clash))}")
            allow = dict.fromkeys(allowed(packages_of(config)) + allowed(getattr(options, "allow", ())))
            config, rest = _chosen(rest, config, tuple(allow))
            groups.append(config)
    except InputError:
        if asks_for_help:  # What is known of the options is what helps to put it right.
            with contextlib.suppress(SystemExit):
                print_help(groups)
        raise
    if asks_for_help:
        print_help(groups)
    _refuse_unknown(rest, groups)
    return options, None if config is None else _filled(config, rest)


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


def _chosen(given: Mapping[str, list[str]], config: Any, allow: Sequence[str]) -> tuple[Any, dict[str, list[str]]]:
    """A draft of `config` with the kinds that are given, and the words that are left for its leaves."""
    draft, left = config, dict(given)
    for name in sorted(given, key=lambda name: name.count(".")):
        # Which names there are depends on the kinds above.
        spelled = _spellings(draft).get(name, name)
        draft, chosen = choose(draft, spelled, " ".join(given[name]), where="--", allow=allow)
        if chosen:
            del left[name]
    spelled = _spellings(draft)
    return draft, {spelled.get(name, name): words for name, words in left.items()}


def _spellings(draft: Any) -> dict[str, str]:
    """Every name in `draft` by its form without hyphens, which it may hold where it is a key of a dict."""
    return {name.replace("-", "_"): name for name, _ in walk(draft)}


def _filled(draft: Any, given: Mapping[str, list[str]]) -> Any:
    """The config with what is `given` for its leaves."""
    there = leaves(draft)
    values = {name: value_of(name, words, there[name]) for name, words in given.items()}
    for name, leaf in there.items():
        if leaf.value is MISSING and name not in values:
            holder = type_name(kind_of(dict(walk(draft))[name.rpartition(".")[0]].value))
            raise InputError(f"--{name} is missing: {holder} needs it and has no default for it")
    return frozen(place(draft, values))


def _refuse_unknown(names: Iterable[str], groups: Sequence[Any]) -> None:
    there = {name: value for group in groups for name, value in walk(group)}
    known = [name for name, value in there.items() if not is_node(value.value)]
    for name in (name for name in names if name not in known):
        inside = [other for other in known if other.startswith(name + ".")]
        if inside:
            raise InputError(f"--{name} is chosen by the config file; here one sets --{', --'.join(inside)}")
        holder = next((outer for outer in _outer(name) if outer in there and takes_kinds(there[outer].hint)), None)
        told = f", whose {holder} is {kind_name(there[holder])}" if holder else ""
        kind = "a field of this config" if "." in name else "an option"
        others = _with_field(name, holder, there[holder]) if holder else ""
        near = others or did_you_mean(name, known, "--") or "; --help lists what there is"
        raise InputError(f"--{name} is not {kind}{told}{near}")


def _outer(name: str) -> Iterable[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _with_field(name: str, holder: str, held: Value) -> str:
    """Which other kinds have the field that `name` asks of `holder`."""
    field = name[len(holder) + 1 :].partition(".")[0]
    having = [n for n, kind in kinds(held.hint).items() if kind is not type(None) and field in fields(kind)]
    return f"; --{holder} {' or '.join(having)} has it" if having else ""
