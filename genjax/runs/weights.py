"""The weights of a run: what its samples are drawn with, and nothing else of its state."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array, PyTree

from genjax import config
from genjax.errors import InputError
from genjax.interop.trees import read_tree, write_tree
from genjax.parallel.rules import unbox
from genjax.runs.checkpoints import Checkpoints, fingerprint
from genjax.runs.parts import Parts

__all__ = [
    "FILES",
    "misfit",
    "read_fixed",
    "read_part",
    "read_weights",
    "ship",
    "trained_item",
    "weights_metadata",
    "write_part",
]

log = logging.getLogger(__name__)

FILES = Parts("model.safetensors", "fixed.safetensors", "variables.safetensors")
"""Where each of the parts lies in a run directory once it is finished; `fixed` lies there from the start."""


def read_weights(directory: Path, task: Any) -> tuple[Parts, int]:
    """The parts of the newest readable checkpoint, else of the files, and their step; by this process alone.

    `trained` is the average where the run keeps one, in the network's precision even where the file holds half of it
    (`ship`). Raises InputError when the directory has no weights, or when what it has does not fit the task, or is not
    what the run was trained with.
    """
    shapes = unbox(jax.eval_shape(task.init, jax.random.key(0)))
    restored, unreadable = None, ""
    if (directory / "checkpoints").is_dir():
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        templates = {trained_item(task): shapes.trained, "variables": shapes.variables}
        templates = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), templates)
        try:
            restored = Checkpoints(directory / "checkpoints").restore(templates)
        except InputError as error:  # As of a release that wrote them otherwise.
            unreadable = str(error)
    if restored is not None:
        trained, variables = restored.trees[trained_item(task)], restored.trees["variables"]
        return Parts(trained, _fixed(directory, task, shapes, restored.record.get("fixed")), variables), restored.step
    if not (directory / FILES.trained).is_file():
        raise InputError(f"{unreadable or f'{directory} has no checkpoint'} and no {FILES.trained} yet")
    if unreadable:
        log.warning("the weights are those of %s instead", directory / FILES.trained)
    trained, metadata = read_tree(directory / FILES.trained)
    variables = read_part(directory, "variables") if jax.tree.leaves(shapes.variables) else shapes.variables
    _check(directory, "trained", trained, shapes.trained)
    _check(directory, "variables", variables, shapes.variables)
    trained = jax.tree.map(lambda leaf, shape: jnp.asarray(leaf, shape.dtype), trained, dict(shapes.trained))
    recorded = int(metadata["fixed"]) if "fixed" in metadata else None
    return Parts(trained, _fixed(directory, task, shapes, recorded), variables), int(metadata.get("step", 0))


def read_fixed(directory: Path, recorded: int | None) -> PyTree[Array]:
    """The parts that hold still, whose fingerprint was recorded (None: of a file that records none).

    Raises InputError where the file is missing or damaged, or is not what the run was trained with.
    """
    path = directory / FILES.fixed
    if not path.is_file():
        raise InputError(f"{path} is missing: it holds the parts of this run that hold still")
    fixed = read_part(directory, "fixed")
    if recorded is not None and fingerprint(fixed) != recorded:
        raise InputError(f"{path} is not what this run was trained with: its numbers have changed")
    return fixed


def _fixed(directory: Path, task: Any, shapes: Parts, recorded: int | None) -> PyTree[Array]:
    elsewhere = task.sources()
    if not jax.tree.leaves(shapes.fixed) and not elsewhere:
        return shapes.fixed
    fixed = read_fixed(directory, recorded)
    # Of parts from elsewhere the task may know no more than the names.
    _check(directory, "fixed", fixed, {name: fixed.get(name, np.zeros(())) for name in elsewhere} | dict(shapes.fixed))
    return fixed


def _check(directory: Path, name: str, part: PyTree[Array], shapes: PyTree) -> None:
    if difference := misfit(part, shapes):
        where = directory / getattr(FILES, name)
        raise InputError(f"the arrays of {where} do not fit the network of {directory / 'config.json'}: {difference}")


def ship(run: str | Path, destination: str | Path, *, allow: str | Sequence[str] = ()) -> Path:
    """Copy to `destination` what a run is sampled with: its config, and its weights as float16, at half their size.

    float16 has three bits more than bfloat16, and the range of weights needs no more of it. `allow` names packages
    outside genjax that the config of the run may import. Returns the file of the weights. Raises InputError as
    `read_weights`, for weights beyond that range, and for a config that imports another package.
    """
    run, destination, allow = Path(run), Path(destination), config.allowed(allow)
    task = config.read(run / "config.json", allow=allow)
    parts, step = read_weights(run, task)
    with np.errstate(over="ignore"):  # what is too large becomes infinite
        halves = jax.tree.map(lambda leaf: np.asarray(leaf).astype(np.float16), parts.trained)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(halves)):
        raise InputError(f"the weights of {run} do not fit into float16, which ends at 65504")
    destination.mkdir(parents=True, exist_ok=True)
    config.save(task, destination / "config.json", allow=allow)
    for name in ("fixed", "variables"):
        write_part(destination, name, jax.device_get(getattr(parts, name)))
    return write_part(destination, "trained", halves, weights_metadata(step, parts.fixed))


def trained_item(task: Any) -> str:
    """The tree of a checkpoint that samples are drawn with: the average, or the parameters where there is none."""
    return "trained" if task.train.ema_decay is None else "ema"


def weights_metadata(step: int, fixed: PyTree[Array]) -> dict[str, str]:
    """What the file of the weights says of them: their step, and the fingerprint of the parts that hold still."""
    return {"step": str(step)} | ({"fixed": str(fingerprint(fixed))} if jax.tree.leaves(fixed) else {})


def read_part(directory: Path, name: str) -> PyTree[Array]:
    """One of the parts from its file. Raises InputError where it is missing or damaged."""
    tree, _ = read_tree(directory / getattr(FILES, name))
    return jax.tree.map(jnp.asarray, tree)


def write_part(directory: Path, name: str, tree: PyTree[np.ndarray], metadata: Mapping[str, str] | None = None) -> Path:
    """Write one of the parts to its file, if there is anything in it."""
    path = directory / getattr(FILES, name)
    if jax.tree.leaves(tree):
        write_tree(path, tree, metadata)
    return path


def misfit(tree: PyTree, shapes: PyTree) -> str:
    """How a nested dict of arrays differs from the one that is needed, in a few words; nothing where it does not.

    Floats of another size are no difference.
    """
    here, needed = (flatten_dict(dict(each), sep=".") for each in (tree, shapes))
    if missing := needed.keys() - here.keys():
        return f"{_some(missing)} missing"
    if unknown := here.keys() - needed.keys():
        return f"{_some(unknown)} not known"
    for name, leaf in needed.items():
        if here[name].shape != leaf.shape:
            return f"{name} has the shape {here[name].shape} and not {leaf.shape}"
        floats = [jnp.issubdtype(array.dtype, jnp.floating) for array in (here[name], leaf)]
        if here[name].dtype != leaf.dtype and not all(floats):
            return f"{name} has the type {here[name].dtype} and not {leaf.dtype}"
    return ""


def _some(names) -> str:
    first, *others = sorted(names)
    return first + (f" and {len(others)} more are" if others else " is")
