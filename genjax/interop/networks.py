"""Which networks a file or a folder of weights holds, and how they are written in another layout.

    part              network                              found in
    transformer       MM-DiT of Stable Diffusion 3         diffusers, original
    vae               autoencoder of latent diffusion      diffusers, original
    text_encoder      CLIP's text encoder (L)              transformers, original
    text_encoder_2    the same (bigG)                      transformers, original
    text_encoder_3    T5 v1.1's encoder                    transformers, original

`original` is a released file of Stable Diffusion 3, with all parts or some; a folder of diffusers has one folder for
each part. Parts have the names that diffusers gives them. `genjax` is a safetensors file of our own trees, and says
the sizes of its networks, so that nothing has to be guessed.

CLIP-L has no projection in original files and here; diffusers' pipeline asks for one, and gets the identity.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from genjax.errors import InputError
from genjax.interop import autoencoder, clip, sd3, t5
from genjax.interop.tables import StateDict, check_config, check_finite
from genjax.interop.trees import write_tree
from genjax.interop.weight_files import read_config, read_json, read_metadata, read_state_dict

__all__ = ["LAYOUTS", "PARTS", "Found", "Kind", "Network", "find", "ours", "parts", "read", "write"]

LAYOUTS = ("diffusers", "original", "genjax")
PREFIXES = {  # of the parts in an original file
    "transformer": sd3.ORIGINAL.prefix,
    "vae": autoencoder.IN_OTHER_FILES,
    "text_encoder": "text_encoders.clip_l.transformer.",
    "text_encoder_2": "text_encoders.clip_g.transformer.",
    "text_encoder_3": "text_encoders.t5xxl.transformer.",
}
PASSED_OVER = ("logit_scale", *(f"text_encoders.{name}.logit_scale" for name in ("clip_l", "clip_g", "t5xxl")))
"""Of CLIP's loss; some files carry it."""
CLASSES = {  # of the parts, as `model_index.json` names them
    "transformer": ["diffusers", "SD3Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_3": ["transformers", "T5EncoderModel"],
}
INDEX = {"_class_name": "StableDiffusion3Pipeline"}
SAID = "genjax.networks"
"""The key of a file's metadata that says what its networks are."""

Config = Mapping[str, Any] | None
"""A `config.json`, if there is one."""


class Network(NamedTuple):
    """A network of ours."""

    sizes: dict[str, Any]
    """Constructor arguments."""
    params: dict
    latents: tuple[float, float | None] | None = None
    """Of an autoencoder the scale and shift of its latents, where it came with them."""


class Kind(Protocol):
    """A network, as each layout has it."""

    title: str
    marks: dict[str, str]
    """By layout a name that no other layout and no other network has."""

    def sizes(self, layout: str, arrays: StateDict, config: Config) -> dict[str, Any]:
        """Constructor arguments, from the arrays and what is beside them."""

    def params(self, layout: str, arrays: StateDict) -> dict:
        """Our tree."""

    def original(self, network: Network) -> StateDict:
        """The arrays of an original file, without the prefix of the part."""

    def diffusers(self, network: Network) -> tuple[StateDict, dict[str, Any]]:
        """The arrays of a folder of diffusers, and its `config.json`."""


class _MMDiT:
    title = "MM-DiT of Stable Diffusion 3"
    marks = {
        "diffusers": "transformer_blocks.0.norm1_context.linear.weight",
        "original": "joint_blocks.0.x_block.attn.qkv.weight",
    }

    def sizes(self, layout: str, arrays: StateDict, config: Config) -> dict[str, Any]:
        told = {}
        if config is not None and layout == "diffusers":
            check_config(config, ["attention_head_dim"], {}, "SD3Transformer2DModel")
            told = {"head_dim": config["attention_head_dim"]}
        sizes = sd3.sizes_from_diffusers if layout == "diffusers" else sd3.sizes_from_original
        return sizes(self._named(layout, arrays), **told)

    def params(self, layout: str, arrays: StateDict) -> dict:
        load = sd3.from_diffusers if layout == "diffusers" else sd3.from_original
        return load(self._named(layout, arrays))

    def original(self, network: Network) -> StateDict:
        arrays = sd3.to_original(network.params, **self._untold(network))
        return {name.removeprefix(sd3.ORIGINAL.prefix): array for name, array in arrays.items()}

    def diffusers(self, network: Network) -> tuple[StateDict, dict[str, Any]]:
        arrays = sd3.to_diffusers(network.params, **self._untold(network))
        return arrays, sd3.config_for_diffusers(arrays, network.sizes)

    def _named(self, layout: str, arrays: StateDict) -> StateDict:
        prefix = sd3.ORIGINAL.prefix if layout == "original" else ""
        return {prefix + name: array for name, array in arrays.items()}

    def _untold(self, network: Network) -> dict[str, int]:
        """What the parameters do not show."""
        return {name: network.sizes[name] for name in ("patch_size", "pos_embed_max_size", "pos_embed_base_size")}


class _Autoencoder:
    title = "autoencoder of latent diffusion"
    marks = {
        "diffusers": "encoder.down_blocks.0.resnets.0.conv1.weight",
        "original": "encoder.down.0.block.0.conv1.weight",
    }
    latents = {16: (1.5305, 0.0609)}
    """Scale and shift by the channels of a code, where nothing tells: of Stable Diffusion 3, and of those before it."""
    old_latents = (0.18215, None)

    def sizes(self, layout: str, arrays: StateDict, config: Config) -> dict[str, Any]:
        if layout == "original":
            return autoencoder.sizes_from_original(arrays)
        groups = {} if config is None else {"groups": config.get("norm_num_groups", 32)}
        return autoencoder.sizes_from_diffusers(arrays) | groups

    def params(self, layout: str, arrays: StateDict) -> dict:
        load = autoencoder.from_diffusers if layout == "diffusers" else autoencoder.from_original
        weights = load(arrays)
        if weights.codebook is not None:
            raise InputError("this autoencoder has a codebook, and that of Stable Diffusion has none")
        return weights.autoencoder

    def original(self, network: Network) -> StateDict:
        return autoencoder.to_original(network.params)

    def diffusers(self, network: Network) -> tuple[StateDict, dict[str, Any]]:
        latents = network.latents or self.latents.get(network.sizes["z_channels"], self.old_latents)
        return autoencoder.to_diffusers(network.params), autoencoder.config_for_diffusers(network.sizes, *latents)


class _Clip:
    title = "CLIP's text encoder"
    marks = {"transformers": clip.EMBEDDING[1], "bare": clip.EMBEDDING[1].removeprefix(clip.START)}

    def sizes(self, layout: str, arrays: StateDict, config: Config) -> dict[str, Any]:
        arrays = self._without_identity(arrays)
        if config is None:
            return clip.sizes_from_weights(arrays)
        return clip.sizes_from_config(config, projected=clip.PROJECTION[1] in arrays)

    def params(self, layout: str, arrays: StateDict) -> dict:
        return clip.from_transformers(self._without_identity(arrays))

    def original(self, network: Network) -> StateDict:
        return clip.to_transformers(network.params)

    def diffusers(self, network: Network) -> tuple[StateDict, dict[str, Any]]:
        arrays = dict(clip.to_transformers(network.params))
        if clip.PROJECTION[1] not in arrays:
            like = arrays[clip.EMBEDDING[1]]
            arrays[clip.PROJECTION[1]] = np.eye(like.shape[1], dtype=like.dtype)
        projection = len(arrays[clip.PROJECTION[1]])
        return arrays, clip.config_for_transformers(network.sizes | {"projection": projection})

    def _without_identity(self, arrays: StateDict) -> StateDict:
        projection = arrays.get(clip.PROJECTION[1])
        if projection is None or not np.array_equal(projection, np.eye(*projection.shape)):
            return arrays
        return {name: array for name, array in arrays.items() if name != clip.PROJECTION[1]}


class _T5:
    title = "T5 v1.1's encoder"
    marks = {"transformers": t5.DISTANCES[1]}

    def sizes(self, layout: str, arrays: StateDict, config: Config) -> dict[str, Any]:
        return t5.sizes_from_weights(arrays) if config is None else t5.sizes_from_config(config)

    def params(self, layout: str, arrays: StateDict) -> dict:
        return t5.from_transformers(arrays)

    def original(self, network: Network) -> StateDict:
        return t5.to_transformers(network.params)

    def diffusers(self, network: Network) -> tuple[StateDict, dict[str, Any]]:
        return t5.to_transformers(network.params), t5.config_for_transformers(network.sizes)


PARTS: dict[str, Kind] = {
    "transformer": _MMDiT(),
    "vae": _Autoencoder(),
    "text_encoder": _Clip(),
    "text_encoder_2": _Clip(),
    "text_encoder_3": _T5(),
}


class Found(NamedTuple):
    """A network among arrays, not converted yet."""

    part: str
    layout: str
    arrays: dict[str, np.ndarray]
    """By their names without the prefix of the part."""
    config: Config

    @property
    def sizes(self) -> dict[str, Any]:
        """Constructor arguments. Raises InputError where arrays are missing or unknown."""
        return PARTS[self.part].sizes(self.layout, self.arrays, self.config)

    def network(self) -> Network:
        """Ours. Raises InputError where arrays are missing, unknown or of other shapes."""
        config = self.config or {}
        latents = (config["scaling_factor"], config.get("shift_factor")) if config.get("scaling_factor") else None
        return Network(self.sizes, PARTS[self.part].params(self.layout, self.arrays), latents)


def find(path: str | Path) -> tuple[list[Found], list[str]]:
    """The networks of a file or folder in a foreign layout, and the names of arrays that belong to none.

    Raises InputError where there are no weights, or they cannot be read.
    """
    path = Path(path)
    if not any((path / part).is_dir() for part in PARTS):
        return _among(read_state_dict(path), read_config(path))
    index = path / "model_index.json"
    said = read_json(index) if index.is_file() else {}
    missing = [part for part in PARTS if (said.get(part) or [None])[0] and not (path / part).is_dir()]
    if missing:
        raise InputError(f"{index} names {', '.join(missing)}, and there is no such folder beside it: null is without")
    found = []
    for part in PARTS:
        if (path / part).is_dir():
            networks, unknown = _among(read_state_dict(path / part), read_config(path / part))
            title = PARTS[part].title
            if len(networks) != 1 or unknown or PARTS[networks[0].part].title != title:
                raise InputError(f"{path / part} does not hold the {title}, and nothing else")
            found.append(networks[0]._replace(part=part))
    return found, []


def _among(arrays: StateDict, config: Config) -> tuple[list[Found], list[str]]:
    groups: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        if name not in PASSED_OVER:
            prefix = next((prefix for prefix in PREFIXES.values() if name.startswith(prefix)), "")
            groups.setdefault(prefix, {})[name.removeprefix(prefix)] = array
    found, unknown = [], []
    for prefix, own in groups.items():
        parts = [part for part in PARTS if prefix in ("", PREFIXES[part])]
        marked = [(part, layout) for part in parts for layout, mark in PARTS[part].marks.items() if mark in own]
        if marked:
            part, layout = marked[_is_large(own)] if len(marked) > 1 else marked[0]
            found.append(Found(part, layout, own, config))
        else:
            unknown += [prefix + name for name in own]
    return sorted(found, key=lambda network: list(PARTS).index(network.part)), sorted(unknown)


def _is_large(arrays: StateDict) -> bool:
    """Whether a text encoder of CLIP that stands alone is bigG: its width is 1,280, and L's is 768."""
    return next(len(array) for name, array in arrays.items() if name.endswith("final_layer_norm.weight")) > 768


def read(path: str | Path) -> dict[str, Network]:
    """The networks of a file or folder of any layout, as ours, by part. Raises InputError as `parts`."""
    return {part: load() for part, load in parts(path).items()}


def parts(path: str | Path) -> dict[str, Callable[[], Network]]:
    """What gives each network of a file or folder of any layout, as ours; it is not read before.

    Raises InputError where there is none, and where an array belongs to none; what is given, where an array does not
    fit.
    """
    path = Path(path)
    own = ours(path)
    if own is not None:
        return {part: partial(_whole, part, network) for part, network in own.items()}
    found, unknown = find(path)
    if unknown:
        more = f" and {len(unknown) - 6} more" * (len(unknown) > 6)
        raise InputError(f"{path} holds arrays of no network that is known here: {', '.join(unknown[:6])}{more}")
    if not found:
        raise InputError(f"{path} holds no network that is known here: {', '.join(PARTS)} of Stable Diffusion 3")
    return {each.part: each.network for each in found}


def ours(path: str | Path) -> dict[str, Network] | None:
    """The networks of a file of our own layout, by part, none of them looked at; None of another's."""
    path = Path(path)
    said = read_metadata(path).get(SAID) if path.is_file() and path.suffix == ".safetensors" else None
    if said is None:
        return None
    tree = unflatten_dict(read_state_dict(path), sep=".")
    told = json.loads(said)
    if tree.keys() != told.keys():
        raise InputError(f"{path} says that it holds {', '.join(told)}, and holds {', '.join(tree)}")
    return {
        part: Network(_with_tuples(own["sizes"]), tree[part], own["latents"] and tuple(own["latents"]))
        for part, own in told.items()
    }


def _whole(part: str, network: Network) -> Network:
    for name, leaf in flatten_dict(network.params, sep=".").items():
        check_finite(f"{part}.{name}", leaf)
    return network


def write(path: str | Path, networks: Mapping[str, Network], layout: str) -> None:
    """Write networks, by part: to a file (`original`, `genjax`), or a folder with one for each part (`diffusers`).

    What is no network, a folder of diffusers' scheduler and tokenizers, is not written.

    Raises InputError where there is no such layout.
    """
    path = Path(path)
    if layout == "genjax":
        said = json.dumps({part: {"sizes": own.sizes, "latents": own.latents} for part, own in networks.items()})
        write_tree(path, {part: network.params for part, network in networks.items()}, {SAID: said})
    elif layout == "original":
        arrays = {
            PREFIXES[part] + name: array
            for part, network in networks.items()
            for name, array in PARTS[part].original(network).items()
        }
        write_tree(path, arrays, {"format": "pt"})
    elif layout == "diffusers":
        for part, network in networks.items():
            arrays, config = PARTS[part].diffusers(network)
            stem = "diffusion_pytorch_model" if part in ("transformer", "vae") else "model"
            write_tree(path / part / f"{stem}.safetensors", arrays, {"format": "pt"})
            _write_json(path / part / "config.json", config)
        _write_json(path / "model_index.json", INDEX | {part: CLASSES[part] for part in networks})
    else:
        raise InputError(f"there is no layout {layout!r}; there are {', '.join(LAYOUTS)}")


def _write_json(path: Path, told: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def _with_tuples(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Lists of JSON are tuples in the fields of a network."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in sizes.items()}
