"""The table of capabilities says what is so: what it grants compiles, what it lacks is refused by the kernels too."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import Mask, attention
from pallas_kernels.dispatch import capabilities
from pallas_kernels.dispatch.capabilities import FEATURES, LACKS, Request
from pallas_kernels.dispatch.implementations import fused
from pallas_kernels.dot_product_attention import problem
from pallas_kernels.dot_product_attention.mask import tree

EVERYTHING = Mask()


def request(
    dtype=jnp.bfloat16,
    T=128,
    S=128,
    N=2,
    K=2,
    H=64,
    V=None,
    mask=EVERYTHING,
    residual=False,
    soft_cap=None,
    scale=0.125,
    **more,
):
    operands = {"query": jnp.ones((1, T, N, H), dtype), "key": jnp.ones((1, S, K, H), dtype)}
    operands |= {"value": jnp.ones((1, S, K, V or H), dtype), **more, **mask.arrays()}
    setting = problem.Settings(scale=scale, soft_cap=soft_cap, left=mask.left, right=mask.right)
    return Request(operands, setting, residual)


INDEX = jnp.arange(128)[None]
ASKS = {
    "float64": lambda: request(np.float64),
    "float32": lambda: request(jnp.float32),
    "head widths that are no multiple of 8": lambda: request(H=20),
    "head widths other than 64 and 128": lambda: request(H=72),
    "head widths above 128": lambda: request(H=256),
    "head widths above 256": lambda: request(H=264),
    "a value width of its own": lambda: request(H=64, V=128),
    "grouped heads": lambda: request(N=4),
    "causal masks": lambda: request(mask=Mask(right=0)),
    "causal masks with T != S": lambda: request(S=256, mask=Mask(right=0)),
    "windows that are not causal": lambda: request(mask=Mask(left=9, right=9)),
    "windows": lambda: request(mask=Mask(left=9, right=0)),
    "windows over odd numbers of queries or keys": lambda: request(T=127, S=127, mask=Mask(left=9, right=0)),
    "positions": lambda: request(mask=Mask(query_positions=INDEX, key_positions=INDEX, right=0)),
    "lengths and ranges of keys": lambda: request(mask=Mask(key_end=INDEX + 1)),
    "segments": lambda: request(mask=Mask(query_segments=INDEX // 32, key_segments=INDEX // 32)),
    "token trees": lambda: request(T=7, mask=tree(np.array([-1, 0, 0, 1, 2, 2, -1]), 100)),
    "dense masks": lambda: request(mask=Mask(dense=jnp.ones((1, 1, 128, 128), bool))),
    "a bias": lambda: request(bias=jnp.ones((1, 1, 128, 128))),
    "scales that are not positive": lambda: request(scale=-0.125),
    "a soft cap": lambda: request(soft_cap=20.0),
    "sinks": lambda: request(sinks=jnp.ones((1, 2))),
    "the log-sum-exp as an output": lambda: request(residual=True),
}
NEEDS = {"triton": "jax_triton", "mosaic": "jax"}
"""What lowering a kernel for a GPU takes on a machine without one."""


def asked(feature) -> Request:
    with jax.enable_x64(feature == "float64"):
        return ASKS[feature]()


@pytest.mark.parametrize("feature", FEATURES)
def test_a_feature_is_seen_in_a_request_that_needs_it_and_only_there(feature):
    assert FEATURES[feature](asked(feature))
    assert not FEATURES[feature](request())


@pytest.mark.parametrize("implementation", LACKS)
@pytest.mark.parametrize("feature", FEATURES)
def test_what_is_lacking_is_refused_with_implementation_feature_and_what_supports_it(feature, implementation):
    lacking = [name for name, needs in FEATURES.items() if needs(asked(feature)) and name in LACKS[implementation]]
    said = capabilities.refusal(implementation, asked(feature))
    if not lacking:
        assert said is None
        return
    assert f"implementation '{implementation}' of attention does not support {lacking[0]}" in said
    for name, lacks in LACKS.items():
        assert (f"'{name}'" in said) == (lacking[0] not in lacks or name == implementation)
    with pytest.raises(NotImplementedError, match=implementation):
        given = asked(feature)
        capabilities.choose(implementation, given.operands, given.settings, return_residual=given.return_residual)


@pytest.mark.parametrize("implementation", NEEDS)
@pytest.mark.parametrize("feature", [name for name in FEATURES if "log-sum-exp" not in name])
def test_a_kernel_compiles_exactly_what_the_table_grants(feature, implementation):
    if importlib.util.find_spec(NEEDS[implementation]) is None:
        pytest.skip(f"needs {NEEDS[implementation]}, to lower kernels for a GPU on a machine without one")
    given = asked(feature)

    def lowered():
        with jax.enable_x64(feature == "float64"):
            run = jax.jit(lambda operands: fused(operands, given.settings, implementation))
            return run.trace(given.operands).lower(lowering_platforms=("cuda",)).as_text()

    if capabilities.refusal(implementation, given) is None:
        assert "custom_call" in lowered()
    else:
        with pytest.raises(NotImplementedError):
            lowered()


GRANTED = {name: ASKS[name] for name in FEATURES if name not in LACKS["cudnn"]}
GRANTED |= {"nothing special": request, "odd lengths": lambda: request(T=127, S=77)}


@pytest.mark.parametrize("feature", GRANTED)
def test_cudnn_is_called_forward_and_backward_for_what_the_table_grants(feature, monkeypatch):
    """JAX only asks for the version of cuDNN, and for the devices, before it writes the call."""
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    given = GRANTED[feature]()
    attend = lambda operands: fused(operands, given.settings, "cudnn")[0].astype(jnp.float32).sum()  # noqa: E731
    whole, mesh = jax.P(), jax.make_mesh((1,), ("gpu",), devices=jax.devices()[:1])
    step = jax.shard_map(jax.grad(attend), mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False)
    text = jax.jit(step).trace(given.operands).lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaSoftmax" in text and "__cudnn$fmhaSoftmaxBackward" in text


def test_the_first_that_can_is_taken_and_a_name_alone_is_taken_at_its_word():
    given = request()
    names = {"implementation": ("cudnn", "mosaic", "triton", "xla")}
    if jax.default_backend() == "cpu":
        assert capabilities.choose(None, given.operands, given.settings) == "xla"
        assert capabilities.choose(names["implementation"], given.operands, given.settings) == "xla"
        with pytest.raises(NotImplementedError, match="'triton' of attention needs a GPU, and JAX runs on cpu"):
            capabilities.choose(("triton",), given.operands, given.settings)
    assert capabilities.choose("mosaic", given.operands, given.settings) == "mosaic"
    with pytest.raises(NotImplementedError, match="empty sequence"):
        capabilities.choose((), given.operands, given.settings)


@pytest.mark.parametrize("implementation", ["triton", "mosaic"])
def test_a_gpu_kernel_on_a_cpu_is_refused_with_what_runs_there(implementation):
    query = jnp.ones((1, 128, 2, 64), jnp.bfloat16)
    with pytest.raises(NotImplementedError, match=f"'{implementation}' .* cpu.*'xla'"):
        attention(query, query, query, implementation=implementation)


def test_the_document_holds_the_table():
    document = Path(__file__).parents[3] / "docs" / "kernels.md"
    assert capabilities.table() in document.read_text(encoding="utf-8")
