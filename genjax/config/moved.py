"""What has moved since a run was recorded, so that old runs are read as they are."""

from collections.abc import Mapping, Sequence
from typing import Any

from genjax.config.hints import join
from genjax.errors import InputError

__all__ = ["moved_fields", "moved_type"]

MOVED: dict[str, str] = {
    "genjax.training.loop.Train": "genjax.training.task.Train",
    "genjax.training.checkpoints.Checkpoint": "genjax.runs.checkpoints.Checkpoint",
    "genjax.diffusion.solvers.Euler": "genjax.diffusion.solvers.runge_kutta.Euler",
    "genjax.diffusion.solvers.Heun": "genjax.diffusion.solvers.runge_kutta.Heun",
    "genjax.diffusion.solvers.DPMpp2M": "genjax.diffusion.solvers.exponential.DPMpp2M",
    "genjax.data.densities.TwoMoons": "genjax.data.blurred.TwoMoons",
    "genjax.data.densities.EightGaussians": "genjax.data.blurred.EightGaussians",
    "genjax.data.densities.TwentyFiveGaussians": "genjax.data.blurred.TwentyFiveGaussians",
    "genjax.data.densities.Rings": "genjax.data.blurred.Rings",
}
"""Old to new: dotted names of types, and fields, as `genjax.x.Type.old_field` to `new_field` or, dropped, to ""."""


def moved_type(name: Any) -> Any:
    """Where the type once recorded as `name` is now, however often it has moved."""
    while isinstance(name, str) and name in MOVED:
        name = MOVED[name]
    return name


def moved_fields(names: Sequence[Any], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields `values` of a type that has or had these `names`, by the names that they have now.

    Raises `InputError` where a field is recorded by its old name and by its new one.
    """
    now = {}
    for key, value in values.items():
        new = key
        for old in (f"{name}.{key}" for name in names):
            new = MOVED.get(old, new)
        if new in now or (new != key and new in values):
            raise InputError(f"{join(where, key)} is {new} now, and {join(where, new)} is recorded too")
        if new:
            now[new] = value
    return now
