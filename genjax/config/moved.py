"""What has moved or changed its shape since a run was recorded, so that old runs are read as they are."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from genjax.config.hints import join
from genjax.errors import InputError

__all__ = ["moved_fields", "moved_type", "reshaped"]

MOVED: dict[str, str] = {
    "genjax.training.loop.Train": "genjax.training.task.Train",
    "genjax.training.checkpoints.Checkpoint": "genjax.runs.checkpoints.Checkpoint",
    "genjax.diffusion.solvers.Euler": "genjax.diffusion.solvers.runge_kutta.Euler",
    "genjax.diffusion.solvers.Heun": "genjax.diffusion.solvers.runge_kutta.Heun",
    "genjax.diffusion.solvers.DPMpp2M": "genjax.diffusion.solvers.exponential.DPMpp2M",
    "genjax.diffusion.predictions.LearnedVariance": "genjax.diffusion.learned_variance.LearnedVariance",
    "genjax.tasks.denoising.Sampler": "genjax.tasks.sampling.Sampler",
    "genjax.tasks.token_sampling.AutoregressiveSampler": "genjax.tasks.code_sampling.AutoregressiveSampler",
    "genjax.tasks.token_sampling.MaskedSampler": "genjax.tasks.code_sampling.MaskedSampler",
    "genjax.data.densities.TwoMoons": "genjax.data.blurred.TwoMoons",
    "genjax.data.densities.EightGaussians": "genjax.data.blurred.EightGaussians",
    "genjax.data.densities.TwentyFiveGaussians": "genjax.data.blurred.TwentyFiveGaussians",
    "genjax.data.densities.Rings": "genjax.data.blurred.Rings",
}
"""Old to new: dotted names of types, and fields, as `genjax.x.Type.old_field` to `new_field` or, dropped, to ""."""


def _text_to_image(data: dict[str, Any]) -> dict[str, Any]:
    """Before conditions and spaces had a place of their own, the task was one of texts, and clipped nothing."""
    data = dict(data)
    text = {"encoder": data.pop("text", None), "dropout": data.pop("caption_dropout", None)}
    given = {name: value for name, value in text.items() if value is not None}
    return data | {
        "type": "genjax.tasks.denoising.Denoising",
        "condition": {"type": "genjax.tasks.conditions.Text"} | given,
        "space": {"type": "genjax.tasks.spaces.Latents"},
    }


def _sampler(data: dict[str, Any]) -> dict[str, Any]:
    """Before grids were kinds, there were two, each with a shift."""
    data = dict(data)
    shift, spacing = data.pop("shift", 3.0), data.pop("spacing", "uniform")
    kind = {"uniform": "ShiftedTimes", "sd3": "SD3Times"}.get(spacing, spacing)
    grid = {"type": f"genjax.diffusion.grids.{kind}", "shift": shift}
    return data | {"type": "genjax.tasks.sampling.Sampler", "grid": grid}


RESHAPED: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "genjax.tasks.text_to_image.TextToImage": _text_to_image,
    "genjax.tasks.text_to_image.Sampler": _sampler,
}
"""By the recorded type: what a record of it would be today. For what is more than another name."""


def reshaped(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The record of a dataclass in the shape that it has today; what else it holds is as recorded."""
    while (kind := data.get("type")) in RESHAPED:
        data = RESHAPED[kind](dict(data))
    return data


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
