"""Tables that map trees to state dicts: exact, strict, and what the layouts say."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from genjax.errors import InputError
from genjax.interop.tables import Entry, check_config, check_names, entries, from_state_dict, layers_in, to_state_dict

SIZES = dict(i=2, o=3, k=3)
TABLE = [
    *entries([("mix", "q k", "oi"), ("norm", "group_norm", "i")], "", "layer.", SIZES),
    *entries([("conv", "conv", "oikk")], "stack.", "blocks.0.", SIZES, 0),
    *entries([("conv", "conv", "oikk")], "stack.", "blocks.1.", SIZES, 1),
    Entry("patches.kernel", ("proj.weight",), (5, 3, 2, 4), "patches"),
    Entry("table.embedding", ("table.weight",), (7, 2)),
]


def numbers() -> dict[str, np.ndarray]:
    """A state dict that the table describes, every number another one."""
    shapes = {name: entry.shape for entry in TABLE for name in entry.theirs}
    return {name: np.random.default_rng(i).normal(size=shape) for i, (name, shape) in enumerate(shapes.items())}


def test_there_and_back_is_the_identity_bit_for_bit_and_the_other_way_round():
    tree = from_state_dict(TABLE, numbers(), "weights")
    back = to_state_dict(TABLE, tree, "parameters")
    assert back.keys() == numbers().keys()
    for name, array in numbers().items():
        assert back[name].dtype == array.dtype and back[name].flags.c_contiguous
        np.testing.assert_array_equal(back[name], array)
    jax.tree.map(np.testing.assert_array_equal, from_state_dict(TABLE, back, "weights"), tree)


def test_matrices_are_turned_pieces_joined_and_layers_stacked():
    theirs, tree = numbers(), from_state_dict(TABLE, numbers(), "weights")
    pieces = np.concatenate([theirs["layer.q.weight"], theirs["layer.k.weight"]])
    np.testing.assert_array_equal(tree["mix"]["kernel"], pieces.T)
    np.testing.assert_array_equal(tree["mix"]["bias"], np.concatenate([theirs["layer.q.bias"], theirs["layer.k.bias"]]))
    np.testing.assert_array_equal(tree["norm"]["scale"], theirs["layer.group_norm.weight"])
    np.testing.assert_array_equal(tree["table"]["embedding"], theirs["table.weight"])
    assert tree["stack"]["conv"]["kernel"].shape == (2, 3, 3, 2, 3)
    np.testing.assert_array_equal(tree["stack"]["conv"]["bias"][1], theirs["blocks.1.conv.bias"])


def test_a_convolution_is_the_same_one_and_that_of_patches_is_linear():
    theirs, tree = numbers(), from_state_dict(TABLE, numbers(), "weights")
    image = np.random.default_rng(9).normal(size=(1, 3, 3, 2))
    ours = jax.lax.conv(jnp.moveaxis(image, 3, 1), theirs["blocks.0.conv.weight"], (1, 1), "VALID")[0, :, 0, 0]
    np.testing.assert_allclose(ours, np.einsum("bhwc,hwcd->d", image, tree["stack"]["conv"]["kernel"][0]), rtol=1e-4)
    patch = np.random.default_rng(10).normal(size=(2, 4, 3))
    expected = np.einsum("hwc,ochw->o", patch, theirs["proj.weight"])
    np.testing.assert_allclose(patch.reshape(-1) @ tree["patches"]["kernel"], expected)


@pytest.mark.parametrize("missing", ["layer.q.weight", "blocks.1.conv.bias", "table.weight"])
def test_a_name_that_is_missing_is_told(missing):
    with pytest.raises(InputError, match=rf"^these are not weights that genjax knows: missing {missing}$"):
        from_state_dict(TABLE, {name: array for name, array in numbers().items() if name != missing}, "weights")


def test_a_name_that_is_unknown_is_told():
    with pytest.raises(InputError, match="^these are not weights that genjax knows: unknown lora$"):
        from_state_dict(TABLE, numbers() | {"lora": np.zeros(2)}, "weights")
    tree = from_state_dict(TABLE, numbers(), "weights")
    with pytest.raises(InputError, match=r"^these are not parameters that genjax knows: unknown lora\.down$"):
        to_state_dict(TABLE, tree | {"lora": {"down": np.zeros(2)}}, "parameters")


def test_of_many_names_six_are_told():
    with pytest.raises(InputError, match="missing a0, a1, a2, a3, a4, a5 and 2 more; unknown b$"):
        check_names(["b"], [f"a{i}" for i in range(8)], "weights")


def test_a_shape_that_does_not_fit_is_told_on_both_sides():
    with pytest.raises(InputError, match=r"^layer\.k\.weight is of shape \(4, 2\), and \(3, 2\) is what fits"):
        from_state_dict(TABLE, numbers() | {"layer.k.weight": np.zeros((4, 2))}, "weights")
    tree = from_state_dict(TABLE, numbers(), "weights")
    tree["stack"]["conv"]["kernel"] = np.zeros((3, 3, 3, 2, 3))
    with pytest.raises(InputError, match=r"^stack\.conv\.kernel is of shape \(3, 3, 3, 2, 3\), and \(2, 3, 3, 2, 3\)"):
        to_state_dict(TABLE, tree, "parameters")


def test_a_config_says_what_is_needed_and_asks_for_nothing_else():
    check_config({"width": 3}, ["width"], {"activation": "silu"}, "Network")
    with pytest.raises(InputError, match="^the config of a Network has no depth, width$"):
        check_config({}, ["depth", "width"], {}, "Network")
    with pytest.raises(InputError, match="^the config of a Network has activation = 'relu'; genjax knows 'silu' only$"):
        check_config({"activation": "relu"}, [], {"activation": "silu"}, "Network")


def test_halves_that_are_swapped_are_the_other_way_round():
    (kernel, bias) = table = list(entries([("mod", "adaln", "oi")], "", "", dict(o=4, i=2), swapped={"mod"}))
    assert kernel.swapped and bias.swapped
    theirs = {"adaln.weight": np.arange(8.0).reshape(4, 2), "adaln.bias": np.arange(4.0)}
    tree = from_state_dict(table, theirs, "weights")["mod"]
    np.testing.assert_array_equal(tree["bias"], [2, 3, 0, 1])
    np.testing.assert_array_equal(tree["kernel"], theirs["adaln.weight"].T[:, [2, 3, 0, 1]])
    back = to_state_dict(table, {"mod": tree}, "parameters")
    jax.tree.map(np.testing.assert_array_equal, back, theirs)


def test_layers_without_biases_have_none():
    assert [entry.ours for entry in entries([("q", "q", "oi")], "", "", SIZES, biases=False)] == ["q.kernel"]


@pytest.mark.parametrize("name", ["blocks.1.conv.bias", "layer.k.weight"])
def test_what_becomes_one_leaf_is_of_one_type(name):
    mixed = numbers() | {name: numbers()[name].astype(np.float16)}
    with pytest.raises(InputError, match=rf"^{name} is of float16, and float64 is what the other parts of .* are of$"):
        from_state_dict(TABLE, mixed, "weights")


def test_arrays_are_asked_for_once_and_one_after_the_other():
    class OnDisk(dict):
        asked = []

        def __getitem__(self, name):
            self.asked.append(name)
            return super().__getitem__(name)

    theirs = OnDisk(numbers())
    from_state_dict(TABLE, theirs, "weights")
    assert sorted(theirs.asked) == sorted(numbers())


@pytest.mark.parametrize(
    ("names", "count"), [(["b.0.x", "b.11.y", "c.30.x"], 12), (["c.1"], 1), (["b.x", "b.2.z"], 3), ([], 1)]
)
def test_layers_are_counted_by_their_highest_number(names, count):
    assert layers_in(names, "b.") == count


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused_by_name(dtype, value):
    theirs = {name: array.astype(dtype) for name, array in numbers().items()}
    theirs["blocks.1.conv.weight"][1, 0, 2, 1] = value
    with pytest.raises(InputError, match=r"^blocks\.1\.conv\.weight has 1 numbers that are not finite, of 54$"):
        from_state_dict(TABLE, theirs, "weights")
