"""Compiled programs that are kept for the next start: JAX's persistent cache, on by default at the front doors.

A program is looked up by a hash of itself, of the compiler and of the machine, so an entry is right or not found. What
is kept does not change what is computed.
"""

import os
from pathlib import Path

import jax

__all__ = ["SECONDS", "keep_compiled"]

SECONDS = 0.5
"""Programs that compile faster are not kept."""


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
