"""Weights of LPIPS: genjax's LPIPS <- torchvision's VGG16 and the linear heads of the package lpips, or taming's files.

One file holds the convolutions and the heads, under any of the names that are around:

    features.N.weight              torchvision's vgg16, whose classifier is passed over
    net.sliceS.N.weight            lpips.LPIPS(net="vgg").state_dict(), and taming-transformers' checkpoints, where
                                   `loss.perceptual_loss.` stands before it
    linS.model.1.weight            the heads, (1, C, 1, 1)

and what is missing, unknown or of another shape is refused by name.
"""

from collections.abc import Iterator

from genjax.interop.tables import Entry, StateDict, from_state_dict

__all__ = ["from_torch"]

STAGES = (("conv1", 64, 2), ("conv2", 128, 2), ("conv3", 256, 3), ("conv4", 512, 3), ("conv5", 512, 3))
"""Name here, channels and number of convolutions between two poolings of VGG16: as in the network, which is not ours
to import."""
IN_OTHER_FILES = "loss.perceptual_loss."
"""What the names begin with in the file of an autoencoder, beside it."""
PASSED_OVER = ("classifier.", "scaling_layer.", "lins.")
"""VGG's classifier, the constants of the pictures, and the package's second names for its heads."""


def from_torch(state_dict: StateDict) -> dict:
    """Parameters of LPIPS. Raises InputError where a name is missing or unknown, or a shape does not fit."""
    if any(name.startswith(IN_OTHER_FILES) for name in state_dict):
        own = {name: array for name, array in state_dict.items() if name.startswith(IN_OTHER_FILES)}
        state_dict = {name.removeprefix(IN_OTHER_FILES): array for name, array in own.items()}
    state_dict = {name: array for name, array in state_dict.items() if not name.startswith(PASSED_OVER)}
    in_slices = any(name.startswith("net.slice") for name in state_dict)
    layer = "net.slice{stage}.{number}" if in_slices else "features.{number}"
    params = from_state_dict(_entries(layer), state_dict, "weights of LPIPS on VGG16")
    return params | {f"lin{stage}": params[f"lin{stage}"].reshape(-1) for stage in range(len(STAGES))}


def _entries(layer: str) -> Iterator[Entry]:
    number, into = 0, 3
    for stage, (name, width, convolutions) in enumerate(STAGES):
        for i in range(convolutions):
            theirs = layer.format(stage=stage + 1, number=number)
            yield Entry(f"trunk.{name}_{i + 1}.kernel", (f"{theirs}.weight",), (width, into, 3, 3), "convolution")
            yield Entry(f"trunk.{name}_{i + 1}.bias", (f"{theirs}.bias",), (width,))
            number, into = number + 2, width  # each is followed by its rectifier
        yield Entry(f"lin{stage}", (f"lin{stage}.model.1.weight",), (1, width, 1, 1))
        number += 1  # and the last by a pooling
