"""The one exception for bad input.

The front doors (`train.py`, `sample.py`, `python -m genjax.evaluate`) print its sentence and exit with code 2;
everything else that goes wrong is a defect and keeps its traceback.
"""

__all__ = ["InputError"]


class InputError(ValueError):
    """Bad input, told in one clear sentence: what was wrong, where, and what is accepted."""
