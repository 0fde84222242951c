"""Attention on Hopper GPUs in Pallas (Mosaic GPU): the fast path for full, banded, ranged and packed attention.

config.py          tile sizes, order of work            tile.py        the arithmetic of a tile, shared by all
prepare.py         refusals, padding, bounds            launch.py      the door to Mosaic, the pieces of work
forward.py         the value                            backward.py    dq; dk and dv
specification.py   the same on a CPU, tile by tile      resources.py   registers, spills, instructions of each kernel
"""
