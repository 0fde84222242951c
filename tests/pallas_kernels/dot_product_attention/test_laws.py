"""One suite of laws for every implementation of attention that a CPU can run, and for every pair of its features.

The forms in plain JAX and the specification of the Hopper kernels run everywhere, and with

    TRITON_INTERPRET=1 pytest tests/pallas_kernels/dot_product_attention/test_laws.py -k triton

the Triton kernels do, where Triton is installed. A few sets of features cover all pairs; every pair alone is the whole
run, which tools/whole_kernels.py makes where the kernels have changed.
Tiles are so small, or sequences so long, that every loop turns several times.
"""

import functools
import importlib.util
import itertools
import os
from dataclasses import dataclass, field

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pallas_kernels.derivatives import Fused, Rules
from pallas_kernels.dot_product_attention import problem, xla
from pallas_kernels.mosaic import config as mosaic
from pallas_kernels.mosaic import specification
from pallas_kernels.triton import config as triton
from pallas_kernels.triton.rules import RULES as TRITON
from tests.pallas_kernels.dot_product_attention import problems


@dataclass(frozen=True)
class Form:
    """What is held to the laws."""

    implementation: str
    """Whose features it has, by the table of capabilities."""
    rules: Rules
    shapes: st.SearchStrategy[dict] = field(default_factory=problems.shapes)


def tiled(**options) -> Rules:
    """The rules in plain JAX with fixed tiles."""
    tiles = xla.Tiles(**options)
    return Rules(
        lambda operands, setting: xla.forward(operands, setting, tiles),
        lambda *arguments: xla.tangent(*arguments, tiles),
        lambda *arguments: xla.backward(*arguments, tiles),
    )


def interpreted() -> Rules:
    """The Triton kernels with tiles of 16."""
    configs = {kind: triton.SMALLEST for kind, _, _ in triton.TABLE}
    return Rules(
        functools.partial(TRITON.forward, configs=configs),
        functools.partial(TRITON.tangent, configs=configs),
        functools.partial(TRITON.backward, configs=configs),
    )


def specified() -> Rules:
    """What the Hopper kernels compute, with 128 rows at rest and blocks of 64; they have no tangent of their own."""
    forward = mosaic.Config("forward", block_k=64)
    backward = mosaic.Config("dq", block_k=64), mosaic.Config("dkv", block_q=64)
    return Rules(
        lambda operands, setting: specification.forward(operands, setting, forward),
        xla.RULES.tangent,
        lambda *arguments: specification.backward(*arguments, backward),
    )


FORMS = {
    "xla by head": Form("xla", tiled(rows=16, columns=8, units=1)),
    "xla batched": Form("xla", tiled(rows=8, columns=16, units=2)),
    "triton interpreted": Form("triton", interpreted()),
    "mosaic specification": Form(
        "mosaic",
        specified(),
        problems.shapes(B=(2, 2), T=(269, 300), S=(271, 300), K=(2, 2), H=(8,)),
    ),
}
FUSED = Fused(
    "attention_in_tests",
    {name: form.rules for name, form in FORMS.items()},
    second_order=xla.SECOND_ORDER,
    shapes=problem.shapes,
)
needs_interpreter = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("triton") is None,
    reason="needs Triton, and TRITON_INTERPRET=1 in the environment",
)


def case(form, *values, name=None):
    """Arguments of a test that begin with a form, with its mark."""
    marks = [needs_interpreter] if FORMS[form].implementation == "triton" else []
    return pytest.param(form, *values, marks=marks, id="-".join(filter(None, [name, form])))


def taking_turns(choose, features, *forms):
    """What `choose` makes of the features that an implementation has, its forms taking turns."""
    chosen = choose(problems.granted(FORMS[forms[0]].implementation, features))
    turns = zip(chosen, itertools.cycle(forms), strict=False)
    return [case(form, features, name=problems.name_of(features)) for features, form in turns]


def in_every_implementation(choose, features):
    forms = [("xla by head", "xla batched"), ("triton interpreted",), ("mosaic specification",)]
    return [x for form in forms for x in taking_turns(choose, features, *form)]


def law_of(form, features, examples):
    @settings(max_examples=examples, database=None, phases=[Phase.generate])
    @given(FORMS[form].shapes)
    def law(shape):
        attend = functools.partial(FUSED, implementation=form)
        problems.compare(attend, *problems.draw(features, **shape), np.float32, 1e-6)

    law()


@pytest.mark.parametrize("form, features", in_every_implementation(problems.cover, problems.MIXED))
def test_sets_that_cover_every_pair_of_features_equal_the_definition_in_float64(form, features):
    law_of(form, features, 1)


@pytest.mark.parametrize("features", [problems.MIXED, problems.MIXED[:6], problems.MIXED[:2]], ids=len)
def test_few_sets_cover_every_pair_of_features_together_and_apart(features):
    sets = problems.cover(features)
    for one, two in itertools.permutations(features, 2):
        assert any(one in chosen and two in chosen for chosen in sets)
        assert len(features) < 12 or any(one in chosen and two not in chosen for chosen in sets)
    assert max(map(len, sets)) <= 4 and len(sets) < 1.5 + len(problems.pairs(features)) / 4


@pytest.mark.whole
@pytest.mark.parametrize("form, pair", in_every_implementation(problems.pairs, problems.FEATURES))
def test_every_pair_of_features_equals_the_definition_in_float64(form, pair):
    law_of(form, pair, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "form, pair", [x for form in FORMS for x in taking_turns(problems.pairs, problems.FEATURES, form)]
)
def test_every_pair_of_features_equals_the_definition_in_every_form(form, pair):
    law_of(form, pair, 5)


@pytest.mark.parametrize("form", [case(form) for form in FORMS])
@pytest.mark.parametrize("dtype, tolerance", [(jnp.bfloat16, 2e-2), (jnp.float16, 3e-3)], ids=["bfloat16", "float16"])
def test_half_precision_is_as_good_as_its_rounding(form, dtype, tolerance):
    implementation = FORMS[form].implementation
    if implementation == "triton" and dtype == jnp.bfloat16:
        pytest.skip("Triton's interpreter cannot multiply bfloat16")
    features = [problems.bias, problems.segments, problems.grouped, problems.soft_cap, problems.sinks]
    drawn = problems.draw(problems.granted(implementation, features), B=2, T=33, S=29, K=2, H=16, seed=3)
    problems.compare(functools.partial(FUSED, implementation=form), *drawn, dtype, tolerance)
