"""A config as JSON, from which it can be rebuilt alone.

    {"type": "genjax.tasks.denoising.Denoising", "model": {"type": "genjax.models.mmdit.MMDiT", "depth": 3}, ...}

Every dataclass is recorded with its type, so that the file is read without the config file that made it. Only types of
genjax are ever imported, and of packages that are named for it (`allowed`): importing a package runs its code. Law:
`to_dict(from_dict(to_dict(config))) == to_dict(config)`. What has moved since is found in `genjax.config.moved`.
"""

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from genjax.config.hints import did_you_mean, join, shown
from genjax.config.kinds import GENJAX, construct, dataclass_named, fields, type_name
from genjax.config.moved import moved_fields, moved_type, reshaped
from genjax.config.tree import children, is_record
from genjax.config.values import hashable, typed
from genjax.errors import InputError

__all__ = ["allowed", "differences", "from_dict", "look_in", "read", "save", "to_dict"]


def allowed(packages: str | Sequence[str] | None) -> tuple[str, ...]:
    """The prefixes `allow` of the types of genjax and of `packages`, such as the option `--allow my_package` names.

    Where packages are named, the working directory is where Python looks last for them. Raises `InputError` for what
    is no name of a package.
    """
    packages = [packages] if isinstance(packages, str) else packages or ()
    for package in packages:
        if not all(part.isidentifier() for part in package.split(".")):
            raise InputError(f"--allow takes names of packages, such as my_package, not {package!r}")
    if packages:
        look_in(Path.cwd())
    return GENJAX + tuple(f"{package}." for package in packages if f"{package}." not in GENJAX)


def look_in(folder: Path) -> None:
    """Let Python look for modules in `folder`, after everywhere else: no file there hides a package."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def save(config: Any, path: str | Path, *, allow: Sequence[str] = GENJAX) -> None:
    """Write `config` to the JSON file `path` in one step; refuses what `read` would refuse."""
    path = Path(path)
    text = json.dumps(to_dict(config), indent=2) + "\n"
    from_dict(json.loads(text), allow=allow)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def read(path: str | Path, *, allow: Sequence[str] = GENJAX) -> Any:
    """The config that `save` wrote to `path`. Raises `InputError`, naming the file, when it is missing or damaged."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no config file {path}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is damaged: it is not JSON ({error})") from None
    try:
        return from_dict(data, allow=allow)
    except InputError as error:
        raise InputError(f"{path} cannot be used: {error}") from None


def to_dict(config: Any) -> dict[str, Any]:
    """`config` as JSON-ready data: dicts, lists, strings, numbers, booleans and None."""
    return _plain(config, "")


def _plain(value: Any, where: str) -> Any:
    if is_record(value):
        kind = type(value)
        if "type" in fields(kind) or "<locals>" in kind.__qualname__ or "." in kind.__qualname__:
            raise InputError(
                f"{where or 'the config'} cannot be recorded: {type_name(kind)} must be a dataclass at the top "
                "of a module, with no field named 'type'"
            )
        return {"type": type_name(kind)} | {key: _plain(v, join(where, key)) for key, (v, _) in children(value).items()}
    if isinstance(value, Mapping) and all(isinstance(key, str) and key != "type" for key in value):
        return {key: _plain(item, join(where, key)) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item, join(where, str(index))) for index, item in enumerate(value)]
    if type(value) in (bool, int, str, type(None)) or (type(value) is float and math.isfinite(value)):
        return value
    raise InputError(
        f"{where} cannot be recorded: a config holds dataclasses, strings, finite numbers, True, False, None, tuples "
        f"and dicts of these with string keys other than 'type', not {shown(value)}"
    )


def from_dict(data: Mapping[str, Any], *, allow: Sequence[str] = GENJAX) -> Any:
    """The config that `to_dict` gave `data` for.

    Fields that `data` lacks take their defaults. Raises `InputError` for a type that is no dataclass or whose module is
    outside the prefixes `allow`, for a field that is unknown, missing or of the wrong type.
    """
    if not isinstance(data, Mapping) or "type" not in data:
        raise InputError("a recorded config is a JSON object with a 'type'")
    return _rebuilt(data, "", allow)


def _rebuilt(data: Any, where: str, allow: Sequence[str]) -> Any:
    if isinstance(data, list):
        return tuple(_rebuilt(item, join(where, str(index)), allow) for index, item in enumerate(data))
    if not isinstance(data, Mapping):
        return data
    data = reshaped(data)
    values = {key: _rebuilt(item, join(where, key), allow) for key, item in data.items() if key != "type"}
    if "type" not in data:
        return hashable(values)
    kind = dataclass_named(moved_type(data["type"]), where, allow)
    known = fields(kind)
    values = moved_fields((data["type"], type_name(kind)), values, where)
    for key in values:
        if key not in known:
            near = did_you_mean(key, known) or f"; it has {', '.join(known)}"
            raise InputError(f"{join(where, key)} is not a field of {type_name(kind)}{near}")
    given = {key: typed(value, known[key].hint, join(where, key)) for key, value in values.items()}
    return construct(kind, given, where)


def differences(a: Any, b: Any) -> list[tuple[str, Any, Any]]:
    """Where two configs differ: (dotted name, value in `a`, value in `b`), values as recorded.

    Where two dataclasses differ in type, that is the one difference reported: the names of the types.
    """
    return list(_differences(to_dict(a), to_dict(b), ""))


def _differences(a: Any, b: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys() and a.get("type") == b.get("type"):
        for key in a:
            yield from _differences(a[key], b[key], join(where, key))
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b) and any(isinstance(x, dict) for x in a):
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from _differences(x, y, join(where, str(index)))
    elif a != b:
        told = [value.get("type", value) if isinstance(value, dict) else value for value in (a, b)]
        yield where or "type", *told
