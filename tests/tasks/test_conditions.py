"""Laws of conditions: what is asked in words is what a row holds, and the null is what stands for not told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.config.kinds import kinds
from genjax.data import Images, Npz
from genjax.errors import InputError
from genjax.models.byte_encoder import ByteEncoder
from genjax.models.dit import DiT
from genjax.models.mmdit import MMDiT
from genjax.models.unet import UNet
from genjax.parallel.rules import unbox
from genjax.tasks.conditions import Condition, Label, Nothing, Text

DATA = Images(image_size=8, channels=1)
CONDITIONS = [Text(ByteEncoder(max_length=24, width=8, pooled_width=8, num_heads=1)), Label(), Nothing()]
each = pytest.mark.parametrize("condition", CONDITIONS, ids=lambda condition: type(condition).__name__)


def test_the_kinds_of_conditions_are_these():
    assert {"Text", "Label", "Nothing"} <= kinds(Condition).keys()


@each
def test_asking_for_what_an_image_shows_gives_the_row_of_that_image(condition):
    """Of the words that the data has for a class, one is what a row of that class holds."""
    example = DATA.source("test")[0]
    words = condition.wishes(DATA)[example["label"] if condition.asked_by != "nothing" else 0]
    row = condition.row(example, np.random.default_rng(0), DATA)
    asked = condition.asked(words, DATA)
    assert row.keys() == asked.keys()
    for name, array in row.items():
        assert any(np.array_equal(array, each) for each in asked[name])
        assert asked[name].dtype == array.dtype


@each
def test_the_null_is_a_row_like_others_and_stands_for_no_class(condition):
    null, asked = condition.null(DATA), condition.asked([words[0] for words in condition.wishes(DATA)], DATA)
    assert null.keys() == asked.keys()
    assert bool(null) == (condition.dropout > 0)
    for name, array in null.items():
        assert array.shape == (1, *asked[name].shape[1:]) and array.dtype == asked[name].dtype
        assert not any(np.array_equal(array[0], row) for row in asked[name])


@pytest.mark.slow
@each
def test_what_the_network_takes_has_a_row_for_each_image_in_the_type_asked_for(condition):
    trained = unbox(condition.init(jax.random.key(0), DATA))
    asked = condition.asked([words[0] for words in condition.wishes(DATA)], DATA)
    taken = jax.jit(lambda rows: condition.encode(trained, rows, jnp.bfloat16))(asked)
    rows = len(condition.wishes(DATA))
    assert all(len(array) == rows and array.dtype in (jnp.bfloat16, jnp.int32) for array in taken)
    assert len(taken) == {"Text": 2, "Label": 1, "Nothing": 0}[type(condition).__name__]


def test_labels_reach_the_network_as_they_are_and_unknown_ones_as_the_null():
    rows = Label().asked(["3", "1"], DATA)
    assert Label().encode({}, rows, jnp.bfloat16)[0].tolist() == [3, 1]
    unknown = Label().row({"label": -1}, np.random.default_rng(0), DATA)
    assert unknown["label"] == Label().null(DATA)["label"][0]


def test_a_class_is_asked_for_by_its_name_or_its_index():
    names = DATA.class_names
    assert Label().asked([names[3], "3", "0"], DATA)["label"].tolist() == [3, 3, 0]
    assert Label().null(DATA)["label"].tolist() == [len(names)]
    with pytest.raises(
        InputError, match="there is no class 'sevn'; did you mean seven.*there are 10, by name or index: zero, one"
    ):
        Label().asked(["sevn"], DATA)
    with pytest.raises(InputError, match="there is no class '10'"):
        Label().asked(["10"], DATA)


def test_data_without_classes_has_no_labels(tmp_path):
    path = tmp_path / "some.npz"
    np.savez(path, images=np.zeros((8, 8, 8, 1), np.float32), captions=np.array(["a", "b"] * 4))
    with pytest.raises(InputError, match="condition is Label, and the data has no classes"):
        Label().check(Npz(path=str(path)), DiT())
    Text(CONDITIONS[0].encoder).check(Npz(path=str(path)), MMDiT())
    Nothing().check(Npz(path=str(path)), UNet())


def test_labels_that_the_network_does_not_know_are_refused():
    with pytest.raises(InputError, match="model.num_classes is 5, and the data has 10 classes"):
        Label().check(DATA, DiT(num_classes=5))
    with pytest.raises(InputError, match="condition.dropout is 0.1, and the network has no null class"):
        Label().check(DATA, UNet(num_classes=10))
    with pytest.raises(InputError, match="model.condition is number, and condition Label gives a class"):
        Label().check(DATA, UNet(num_classes=10, condition="number"))
    Label(dropout=0.0).check(DATA, UNet(num_classes=10))
    Label().check(DATA, UNet(num_classes=10, null_class=True))


@pytest.mark.parametrize("kind", [Text, Label])
def test_a_dropout_is_a_probability(kind):
    with pytest.raises(InputError, match="dropout of a condition lies in"):
        kind(dropout=1.5)
