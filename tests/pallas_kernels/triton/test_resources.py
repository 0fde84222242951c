"""What the compiler makes of the kernels for Hopper, found without a GPU."""

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from pallas_kernels.triton import config, resources


@pytest.fixture(scope="module")
def report():
    return resources.report()


def test_no_kernel_spills_a_register(report):
    assert {name: found["spills"] for name, found in report.items() if found["spills"]} == {}


def test_every_kernel_fits_in_shared_memory(report):
    assert {name: found["shared"] for name, found in report.items() if found["shared"] > config.SHARED_MEMORY} == {}


def test_tiles_of_64_rows_run_on_the_tensor_cores_of_hopper(report):
    for entry, tiles in config.TABLE.items():
        if min(tiles.block_q, tiles.block_k) >= 64:
            assert report[resources.name(*entry)]["wgmma"] > 0, entry


def test_the_estimate_of_shared_memory_is_what_the_compiler_takes(report):
    for (kind, width, load), tiles in config.TABLE.items():
        estimate = config.estimate_shared_memory(kind, tiles, width, width)
        assert estimate <= config.SHARED_MEMORY
        assert report[resources.name(kind, width, load)]["shared"] <= 1.4 * estimate, (kind, width, load)
