"""What is written as a folder of diffusers is loaded by diffusers and transformers, whole, with the same outputs."""

import jax
import numpy as np
import pytest

from genjax.interop import networks
from tests.interop.test_networks import MODELS, weights

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

CLASSES = {
    "transformer": diffusers.SD3Transformer2DModel,
    "vae": diffusers.AutoencoderKL,
    "text_encoder": transformers.CLIPTextModelWithProjection,  # as the pipeline asks for
    "text_encoder_2": transformers.CLIPTextModelWithProjection,
    "text_encoder_3": transformers.T5EncoderModel,
}
TOKENS = np.array([[7, 1, 2, 3, 8, 8], [7, 8, 0, 0, 0, 0]], np.int32)
RNG = np.random.default_rng(1)


def given(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def outputs(part, model, params, reference):
    """(Ours, theirs)."""
    run = lambda *inputs, **options: jax.jit(lambda p, *x: model.apply({"params": p}, *x, **options))(params, *inputs)  # noqa: E731
    if part == "transformer":
        x, t, context, pooled = given(2, 4, 6, 16), np.float32([0.2, 0.9]), given(2, 5, 6), given(2, 9)
        theirs = reference(
            torch.from_numpy(x.transpose(0, 3, 1, 2).copy()),
            encoder_hidden_states=torch.from_numpy(context),
            pooled_projections=torch.from_numpy(pooled),
            timestep=torch.from_numpy(1000 * t),
        ).sample
        return run(x, t, context, pooled), theirs.numpy().transpose(0, 2, 3, 1)
    if part == "vae":
        code = given(2, 3, 4, 16)
        theirs = reference.decode(torch.from_numpy(code.transpose(0, 3, 1, 2).copy())).sample
        return run(code, method="decode"), theirs.numpy().transpose(0, 2, 3, 1)
    theirs = reference(torch.from_numpy(TOKENS).long())
    if part == "text_encoder_3":
        return run(TOKENS), theirs.last_hidden_state.numpy()
    return run(TOKENS).pooled, theirs.text_embeds.numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of diffusers, of weights with outputs of order one."""

    def tame(leaf):
        return (leaf * max(1, leaf[..., 0].size / leaf.shape[0] ** (leaf.ndim == 3)) ** -0.5).astype(np.float32)

    path = tmp_path_factory.mktemp("pipeline")
    tamed = {part: network._replace(params=jax.tree.map(tame, network.params)) for part, network in weights().items()}
    networks.write(path, tamed, "diffusers")
    return path, tamed


@pytest.mark.parametrize("part", CLASSES)
def test_diffusers_loads_it_whole_and_gives_the_same(folder, part):
    path, tamed = folder
    reference, told = CLASSES[part].from_pretrained(path / part, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"]
    with torch.no_grad(), jax.default_matmul_precision("highest"):
        ours, theirs = outputs(part, MODELS[part][0], tamed[part].params, reference.eval())
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
