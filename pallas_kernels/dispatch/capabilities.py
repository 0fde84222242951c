"""Which implementation can do what: the table that decides, that refusals quote, and that tests hold to reality.

`python -m pallas_kernels.dispatch.capabilities` prints it as it stands in docs/kernels.md.
"""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from pallas_kernels.derivatives import UNTRIED, Arrays
from pallas_kernels.dot_product_attention.mask import Mask
from pallas_kernels.dot_product_attention.problem import Settings, mask_of


@dataclass(frozen=True)
class Request:
    """What a call asks for."""

    operands: Arrays
    settings: Settings
    return_residual: bool = False

    @property
    def mask(self) -> Mask:
        """The mask of the problem."""
        return mask_of(self.operands, self.settings)

    @property
    def dtype(self) -> jnp.dtype:
        """Of query, key and value."""
        return self.operands["query"].dtype

    def width(self, name: str = "query") -> int:
        """Of a head of the query (and key), or of the value."""
        return self.operands[name].shape[-1]


def _is_causal(settings: Settings) -> bool:
    return settings.right == 0 and (settings.left is None or settings.left >= 0)


FEATURES: dict[str, Callable[[Request], bool]] = {
    "float64": lambda r: r.dtype == jnp.float64,
    "float32": lambda r: r.dtype == jnp.float32,
    "head widths that are no multiple of 8": lambda r: any(r.width(n) % 8 for n in ("query", "value")),
    "head widths other than 64 and 128": lambda r: r.width() not in (64, 128),
    "head widths above 128": lambda r: max(r.width(), r.width("value")) > 128,
    "head widths above 256": lambda r: max(r.width(), r.width("value")) > 256,
    "a value width of its own": lambda r: r.width() != r.width("value"),
    "grouped heads": lambda r: r.operands["query"].shape[2] != r.operands["key"].shape[2],
    "causal masks": lambda r: _is_causal(r.settings) and "positions" not in r.mask.rules,
    "causal masks with T != S": lambda r: (
        "band" in r.mask.rules and r.operands["query"].shape[1] != r.operands["key"].shape[1]
    ),
    "windows that are not causal": lambda r: "band" in r.mask.rules and not _is_causal(r.settings),
    "windows": lambda r: r.settings.left is not None,
    "windows over odd numbers of queries or keys": lambda r: (
        r.settings.left is not None and any(r.operands[name].shape[1] % 2 for name in ("query", "key"))
    ),
    "positions": lambda r: "positions" in r.mask.rules,
    "lengths and ranges of keys": lambda r: "ranges" in r.mask.rules,
    "segments": lambda r: "segments" in r.mask.rules,
    "token trees": lambda r: "tree" in r.mask.rules,
    "dense masks": lambda r: "dense" in r.mask.rules,
    "a bias": lambda r: "bias" in r.operands,
    "scales that are not positive": lambda r: r.settings.scale <= 0,
    "a soft cap": lambda r: r.settings.soft_cap is not None,
    "sinks": lambda r: "sinks" in r.operands,
    "the log-sum-exp as an output": lambda r: r.return_residual,
}
"""Every feature that some implementation lacks, and how a request shows that it needs it."""

LACKS: dict[str, frozenset[str]] = {
    "cudnn": frozenset(FEATURES) - {"head widths other than 64 and 128", "grouped heads", "causal masks", "windows"},
    "mosaic": frozenset(
        {
            "float64",
            "float32",
            "head widths that are no multiple of 8",
            "head widths other than 64 and 128",
            "head widths above 128",
            "head widths above 256",
            "a value width of its own",
            "positions",
            "token trees",
            "dense masks",
            "a bias",
            "scales that are not positive",
            "sinks",
        }
    ),
    "triton": frozenset({"float64", "head widths above 256"}),
    "xla": frozenset(),
}
"""What each implementation lacks; in the order in which they are tried on a GPU."""

PACKAGES = {"triton": ("triton", "jax_triton")}
"""Packages that an implementation needs beyond JAX."""


def refusal(implementation: str, request: Request) -> str | None:
    """One sentence that says what the implementation cannot do and which one can; None if it can do all of it."""
    if implementation not in LACKS:
        return f"there is no implementation {implementation!r} of attention: accepted are {', '.join(sorted(LACKS))}"
    for feature, needs in FEATURES.items():
        if feature in LACKS[implementation] and needs(request):
            able = [repr(name) for name, lacks in LACKS.items() if feature not in lacks]
            return f"implementation {implementation!r} of attention does not support {feature}: {_join(able)} can"
    return None


def unavailable(implementation: str) -> str | None:
    """One sentence that says why an implementation cannot run on this machine; None if it can."""
    if implementation == "xla":
        return None
    if jax.default_backend() != "gpu":
        return f"implementation {implementation!r} of attention needs a GPU, and JAX runs on {jax.default_backend()}"
    missing = [name for name in PACKAGES.get(implementation, ()) if importlib.util.find_spec(name) is None]
    if missing:
        return f"implementation {implementation!r} of attention needs {_join(missing)}: pip install 'genjax[cuda]'"
    if implementation == "mosaic" and not str(jax.devices()[0].compute_capability).startswith("9."):
        return "implementation 'mosaic' of attention needs a Hopper GPU (compute capability 9.0)"
    return None


def choose(
    implementation: str | Sequence[str] | None, operands: Arrays, settings: Settings, *, return_residual: bool = False
) -> str:
    """The implementation to take. Raises NotImplementedError with one sentence for each that was asked for.

    One name is taken at its word: only what it cannot do is refused, so that programs for another machine can be
    compiled. Of several names, or of all but the untried for None, the first is taken that can do it on this machine.
    """
    request = Request(operands, settings, return_residual)
    if isinstance(implementation, str):
        reason = refusal(implementation, request)
        if reason:
            raise (NotImplementedError if implementation in LACKS else ValueError)(reason)
        return implementation
    reasons = []
    for name in [x for x in LACKS if x not in UNTRIED] if implementation is None else implementation:
        reason = refusal(name, request) or unavailable(name)
        if not reason:
            return name
        reasons.append(reason)
    raise NotImplementedError("; ".join(reasons) or "implementation is an empty sequence: name at least one")


def table() -> str:
    """The table as Markdown."""
    names = list(LACKS)
    lines = ["| asked for | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    for feature in FEATURES:
        marks = ["refused" if feature in LACKS[name] else "yes" for name in names]
        lines.append(f"| {feature} | " + " | ".join(marks) + " |")
    return "\n".join(lines)


def _join(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


if __name__ == "__main__":
    print(table())
