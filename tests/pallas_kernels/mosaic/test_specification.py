"""The executable specification of the Hopper kernels against attention by its definition, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.dot_product_attention.dense import attend
from pallas_kernels.dot_product_attention.problem import Settings
from pallas_kernels.mosaic import specification
from pallas_kernels.mosaic.config import Config
from tests.pallas_kernels.dot_product_attention.problems import compiled

WIDTH = 8
FORWARD = Config("forward", block_k=64)
BACKWARD = Config("dq", block_k=64), Config("dkv", block_q=64)


def problem(*, batch=1, queries, keys, heads=2, key_heads=2, **mask):
    rng = np.random.default_rng(0)
    shapes = {"query": (queries, heads), "key": (keys, key_heads), "value": (keys, key_heads)}
    arrays = {name: rng.normal(size=(batch, *shape, WIDTH)).astype(np.float32) for name, shape in shapes.items()}
    return arrays | mask


def documents(*lengths, padding=0):
    segments = np.repeat(np.arange(len(lengths)), lengths)
    segments = np.pad(segments, (0, padding), constant_values=-1)[None]
    return dict(query_segments=segments, key_segments=segments)


def ranges(queries, keys, batch=1):
    """Ranges at random, some of them empty."""
    rng = np.random.default_rng(1)
    start = rng.integers(0, keys, (batch, queries))
    return dict(key_start=start, key_end=start + rng.integers(0, 90, (batch, queries)))


PROBLEMS = {
    "full, odd lengths": (problem(queries=203, keys=341), {}),
    "shorter than a tile": (problem(queries=5, keys=3), {}),
    "causal, grouped heads": (problem(queries=320, keys=320, heads=4), dict(right=0)),
    "window, soft cap": (problem(queries=333, keys=333), dict(left=70, right=20, soft_cap=2.0)),
    "ranges, some rows empty": (problem(batch=2, queries=203, keys=301, **ranges(203, 301, 2)), {}),
    "packed documents, causal": (problem(queries=332, keys=332, **documents(1, 130, 64, 137)), dict(right=0)),
    "packed documents, padding": (problem(batch=2, queries=150, keys=150, **documents(70, 50, padding=30)), {}),
}


def by_definition(operands, settings, cotangents):
    """Outputs, and cotangents of query, key and value, in float64."""
    with jax.enable_x64(True):
        moving = {name: jnp.asarray(operands[name], jnp.float64) for name in ("query", "key", "value")}
        fixed = {name: jnp.asarray(x) for name, x in operands.items() if name not in moving}
        cotangents = tuple(jnp.asarray(x, jnp.float64) for x in cotangents)

        @compiled
        def everything(moving):
            outputs, pull = jax.vjp(lambda given: attend(given | fixed, settings), moving)
            return outputs, pull(cotangents)[0]

        outputs, found = everything(moving)
        return [np.asarray(x) for x in outputs], {name: np.asarray(x) for name, x in found.items()}


@pytest.mark.parametrize("name", PROBLEMS)
def test_tiles_make_up_attention_and_its_gradients(name):
    operands, rules = PROBLEMS[name]
    settings = Settings(scale=WIDTH**-0.5, **rules)
    rng = np.random.default_rng(2)
    shape = operands["query"].shape
    cotangents = [rng.normal(size=s).astype(np.float32) for s in (shape, shape[:3])]
    expected, expected_gradients = by_definition(operands, settings, cotangents)

    @compiled
    def everything(operands):
        outputs = specification.forward(operands, settings, FORWARD)
        return outputs, specification.backward(cotangents, operands, outputs, tuple(gradients), settings, BACKWARD)

    gradients = ("query", "key", "value")
    outputs, found = everything(jax.tree.map(jnp.asarray, operands))
    for one, exact in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(one, exact, atol=2e-6, rtol=2e-6)
    for which in gradients:
        np.testing.assert_allclose(found[which], expected_gradients[which], atol=1e-5, rtol=1e-5, err_msg=which)


def test_a_row_that_sees_no_key_gives_zero_and_takes_no_gradient():
    operands = problem(queries=130, keys=130, key_end=np.where(np.arange(130) % 3, 40, 0)[None])
    settings = Settings(scale=1.0)
    outputs = compiled(lambda given: specification.forward(given, settings, FORWARD))(operands)
    out, lse = (np.asarray(x)[:, ::3] for x in outputs)
    assert not out.any() and np.isneginf(lse).all()
    cotangents = np.ones_like(outputs[0]), np.ones_like(outputs[1])
    backward = compiled(lambda *given: specification.backward(*given, ("query", "key"), settings, BACKWARD))
    gradients = backward(cotangents, operands, outputs)
    assert not np.asarray(gradients["query"])[:, ::3].any()
    assert np.isfinite(np.asarray(gradients["key"])).all() and not np.asarray(gradients["key"])[:, 40:].any()
