"""Laws of keeping freed memory, told by the kernel's count of page faults."""

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
from genjax.parallel.host_memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
def use():
    block = library.malloc(100_000_000)
    ctypes.memset(block, 1, 100_000_000)
    library.free(block)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    use()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode):
    told = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
    kept, count = told.stdout.split()
    return kept, int(count)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc is what is set")
def test_a_large_block_that_is_used_again_touches_no_fresh_pages():
    assert faults("keep") == ("True", pytest.approx(0, abs=50))
    assert faults("leave")[1] > 10 * 50
