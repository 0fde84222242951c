"""What every network of classes asks of its labels."""

from jaxtyping import Array, Int

from genjax.errors import InputError

__all__ = ["check_label"]


def check_label(num_classes: int, label: Int[Array, " B"] | None) -> None:
    """Raises InputError where a network of classes gets no label, and where one without classes gets one."""
    if num_classes and label is None:
        raise InputError(f"a network of {num_classes} classes needs a label for each row")
    if not num_classes and label is not None:
        raise InputError("a network with num_classes = 0 takes no label")
