"""Laws of first stages: the weights of a run and no others, and codes that they have written."""

import shutil
from dataclasses import replace

import chex
import jax
import numpy as np
import pytest

from genjax import config
from genjax.data import Codes, Digits
from genjax.errors import InputError
from genjax.interop.trees import write_tree
from genjax.parallel.rules import unbox
from genjax.quantisation.posterior import Posterior
from genjax.quantisation.vector import VQ
from genjax.runs.weights import read_weights, write_part
from genjax.tasks.first_stage import FirstStage
from genjax.tasks.gan import GAN
from genjax.tasks.tokeniser_requests import CodesFolder
from genjax.training.loop import fit
from tests.tasks.second_stages import AR, ONE, SUM

DATA = Digits()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(directory, parts) of the run of a tokeniser that has not learnt anything."""
    directory, task = tmp_path_factory.mktemp("first") / "run", ONE.tokeniser(DATA)
    directory.mkdir()
    parts = jax.device_get(unbox(jax.jit(task.init)(jax.random.key(3))))
    config.save(task, directory / "config.json")
    for name in ("trained", "variables"):
        write_part(directory, name, getattr(parts, name))
    return directory, parts


@pytest.fixture(scope="module")
def codes(run, tmp_path_factory):
    """The folder of codes that it has written."""
    folder = tmp_path_factory.mktemp("codes")
    return str(CodesFolder(ONE.tokeniser(DATA), run[1]).write(folder))


def at(run, stage=ONE):
    return replace(stage, path=str(run[0]))


def test_its_weights_are_those_of_the_run(run):
    stage = at(run)
    held = stage.source(DATA).read_as(unbox(jax.eval_shape(lambda key: stage.init(key, DATA), jax.random.key(0))))
    chex.assert_trees_all_equal(held["trained"], run[1].trained["autoencoder"])
    chex.assert_trees_all_equal(held["variables"], run[1].variables["quantiser"])
    images = np.stack([DATA.source("test")[i]["image"] for i in range(3)])
    tokeniser = stage.tokeniser(DATA)
    np.testing.assert_array_equal(tokeniser.ids_of(stage.parts(held), images), tokeniser.ids_of(run[1], images))


def test_a_file_of_such_weights_is_read_too(run, tmp_path):
    held = at(run).source(DATA).read()
    write_tree(tmp_path / "first.safetensors", held)
    stage = replace(ONE, path=str(tmp_path / "first.safetensors"))
    chex.assert_trees_all_equal(stage.source(DATA).read(), held)


def test_a_first_stage_without_a_run_is_refused():
    with pytest.raises(InputError, match="first_stage.path is the run of a tokeniser"):
        replace(ONE, path="").source(DATA)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": replace(ONE.model, groups=1)}, "first_stage.model.groups is 1, and in the run .* it is 2"),
        ({"bottleneck": replace(ONE.bottleneck, decay=0.5)}, "first_stage.bottleneck.decay is 0.5, and in the run"),
        ({"bottleneck": VQ(size=6, width=3)}, "first_stage.bottleneck.type is genjax.quantisation.vector.VQ, and in"),
    ],
)
def test_a_first_stage_that_is_not_the_runs_is_refused(run, change, sentence):
    with pytest.raises(InputError, match=sentence):
        replace(at(run), **change).source(DATA).read()


def test_a_run_of_another_kind_is_refused(run, tmp_path):
    other = replace(ONE, path="gan-digits")
    with pytest.raises(InputError, match=f"is the run of a Tokeniser, and gan-digits is one of {GAN.__name__}"):
        other.source(DATA).read()


def test_codes_of_this_first_stage_are_taken_and_read_as_its_pictures_would_be(run, codes):
    data, stage = Codes(codes, of=DATA), at(run)
    stage.check(data)
    held = stage.source(data).read()
    ids = np.stack([data.source("test")[i]["codes"] for i in range(5)])
    images = np.stack([DATA.source("test")[i]["image"] for i in range(5)])
    np.testing.assert_array_equal(stage.tokeniser(data).ids_of(stage.parts(held), images), ids)
    pictures, on_disk = (replace(AR, data=each) for each in (DATA, data))
    rows = [task.prepare(task.data.source("test")[2], np.random.default_rng(0)) for task in (pictures, on_disk)]
    parts = AR.init(jax.random.key(0))._replace(fixed={"first_stage": held})
    found = [task.codes_of(parts, {name: row[name][None] for name in row}) for task, row in
             zip((pictures, on_disk), rows, strict=True)]  # fmt: skip
    np.testing.assert_array_equal(*found)
    np.testing.assert_array_equal(rows[0]["prefix"], rows[1]["prefix"])


def test_codes_of_another_first_stage_are_refused(run, codes, tmp_path):
    held = at(run).source(DATA).read()
    held["variables"]["codebook"] = held["variables"]["codebook"] + 1
    write_tree(tmp_path / "first.safetensors", held)
    stage = replace(ONE, path=str(tmp_path / "first.safetensors"))
    with pytest.raises(InputError, match="were written by another first stage than .*: write them again"):
        stage.source(Codes(codes, of=DATA)).read()


@pytest.mark.slow
def test_a_run_on_codes_goes_on_with_those_codes_alone_and_is_sampled_without_any(run, codes, tmp_path):
    """Neither the folder of codes nor the first stage's run is there any more."""
    folder, first = tmp_path / "codes", tmp_path / "first"
    shutil.copytree(codes, folder)
    shutil.copytree(run[0], first)
    every = {"train.steps": 1, "train.log_every": 1, "checkpoint.every": 1, "train.validate_every": 9}
    stage = replace(ONE, path=str(first))
    task = config.override(replace(AR, first_stage=stage, data=Codes(str(folder), of=DATA)), every)
    fit(task, tmp_path / "run")
    other = jax.device_get(unbox(jax.jit(ONE.tokeniser(DATA).init)(jax.random.key(4))))
    (tmp_path / "other").mkdir()
    CodesFolder(ONE.tokeniser(DATA), other).write(tmp_path / "other")
    foreign = config.override(task, {"data.path": str(tmp_path / "other")})
    with pytest.raises(InputError, match="were written by another first stage than"):
        fit(foreign, tmp_path / "run")
    shutil.rmtree(folder)
    shutil.rmtree(first)
    alone = config.read(tmp_path / "run" / "config.json")
    parts, step = read_weights(tmp_path / "run", alone)
    assert step == 1
    (drawn,) = alone.request("sample")(alone, parts)
    assert drawn.images.shape == (16, 8, 8, 1)


def test_another_precision_than_the_runs_is_refused(run):
    with pytest.raises(InputError, match="first_stage.precision is bf16, and the run .* has fp32"):
        replace(at(run), precision="bf16").source(DATA).read()
    assert replace(ONE, precision="bf16").tokeniser(DATA).train.precision == "bf16"


def test_codes_of_another_shape_are_refused(codes):
    with pytest.raises(
        InputError, match="codes of data.path are 4x4 ids below 6 each, and first_stage makes 4x4x2 ids"
    ):
        SUM.check(Codes(codes, of=DATA))
    model = replace(ONE.model, moments=True)
    with pytest.raises(InputError, match="4x4 ids below 6 each, and first_stage makes 4x4x3 numbers"):
        FirstStage(path="none", model=model, bottleneck=Posterior()).check(Codes(codes, of=DATA))


def test_pictures_that_the_stride_does_not_divide_are_refused():
    model = replace(ONE.model, widths=(4,) * 5)
    with pytest.raises(InputError, match="images of 8x8 are not divided by the stride of the model, 16"):
        replace(ONE, model=model).check(DATA)
