"""The implementations of attention, and the primitives made from them.

| implementation | value                | tangent              | backward             |
|----------------|----------------------|----------------------|----------------------|
| xla            | xla.py               | xla.py               | xla.py               |
| triton         | triton/forward.py    | triton/tangent.py    | triton/backward.py   |
| mosaic         | mosaic/forward.py    | xla.py               | mosaic/backward.py   |
| cudnn          | cuDNN, by jax.nn     | xla.py               | cuDNN, by jax.nn     |

The kernels are imported when they are first used, so that none of their libraries is needed for the others.
"""

from dataclasses import replace

from pallas_kernels.derivatives import Fused, Rules, imported_late
from pallas_kernels.dot_product_attention import problem, xla
from pallas_kernels.triton.rules import RULES as triton

_MOSAIC = ("pallas_kernels.mosaic.forward", "", "pallas_kernels.mosaic.backward")
_CUDNN = "pallas_kernels.dot_product_attention.cudnn"

fused = Fused(
    "attention",
    {
        "xla": xla.RULES,
        "triton": triton,
        "mosaic": replace(Rules.of_modules(*_MOSAIC), tangent=xla.RULES.tangent),
        "cudnn": Rules.of_modules(_CUDNN, _CUDNN, _CUDNN, complete=_CUDNN),
    },
    second_order=xla.SECOND_ORDER,
    shapes=problem.shapes,
)
"""fused(operands, settings, implementation) -> (out, lse), with every derivative."""

TILINGS = {
    "xla": (xla.tilings,),
    "triton": (imported_late("pallas_kernels.triton.forward", "tilings"),),
    "mosaic": (imported_late("pallas_kernels.mosaic.prepare", "tilings"), xla.tilings),
    "cudnn": (xla.tilings,),
}
"""Functions of (operands, settings) that tell which tilings an implementation schedules, its tangent included."""
