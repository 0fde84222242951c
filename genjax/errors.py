"""The one exception for bad input.

The front doors (`train.py`, `sample.py`, `python -m genjax.evaluate`) print its sentence and exit with code 2;
everything else that goes wrong is a defect and keeps its traceback.

A dataclass knows its fields, and not where it stands: what it refuses begins with the name of its own field, as in
"steps is at least 1, not 0". Who knows the place puts it before that (`placed`): the config layer wherever a config is
built, and who asks a part of a config for what only the machine can tell.
"""

import contextlib
from collections.abc import Iterator

__all__ = ["InputError", "placed"]


class InputError(ValueError):
    """Bad input, told in one clear sentence: what was wrong, where, and what is accepted."""


@contextlib.contextmanager
def placed(where: str, kind: type) -> Iterator[None]:
    """Within, a refusal that begins with the name of a field of the dataclass `kind` is told with `where` before it.

    As in "train.steps is at least 1, not 0". Other refusals, and all where `where` is empty, are told as they are.
    """
    try:
        yield
    except InputError as error:
        field = str(error).partition(" ")[0].rstrip(":")
        if where and field in getattr(kind, "__dataclass_fields__", ()):
            raise InputError(f"{where}.{error}") from None
        raise
