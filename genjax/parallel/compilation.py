"""How programs are compiled, and kept for the next start; the front doors see to both before anything is computed.

**Convolutions on a CPU.** jaxlib hands dot products, sums and convolutions to YNNPACK, whose convolutions of images
take up to three times as long as those that XLA has itself (Eigen's), forwards and backwards. So XLA is told to keep
them.

**Kept programs** are JAX's persistent cache. A program is looked up by a hash of itself, of the compiler and of the
machine, so an entry is right or not found. What is kept does not change what is computed.
"""

import os
from pathlib import Path

import jax
import jaxlib.version

__all__ = ["SECONDS", "convolve_by_xla", "keep_compiled"]

BY_XLA = "--xla_cpu_experimental_ynn_fusion_type=-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
"""What is handed over, but for convolutions; from jaxlib 0.10.2 on. XLA ends a process for an option that it lacks."""

SECONDS = 0.5
"""Programs that compile faster are not kept."""


def convolve_by_xla() -> None:
    """Let XLA compute convolutions on a CPU, from now on in this process and those it starts; see above.

    It is said by XLA_FLAGS, which XLA reads when JAX computes for the first time: later it changes nothing. Flags of
    one's own about it, and all others, stay as they are.
    """
    flags = os.environ.get("XLA_FLAGS", "").split()
    if jaxlib.version.__version_info__ < (0, 10, 2) or any(flag.startswith(BY_XLA.partition("=")[0]) for flag in flags):
        return
    os.environ["XLA_FLAGS"] = " ".join([*flags, BY_XLA])


def keep_compiled(wanted: bool = True) -> Path | None:
    """Keep what this process compiles below the user's cache directory; where, or None where it is not wanted.

    A directory that the environment variable JAX_COMPILATION_CACHE_DIR names is taken instead, with JAX's own settings.
    """
    if not wanted:
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    if named := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return Path(named)
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "genjax" / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", SECONDS)
    return folder
