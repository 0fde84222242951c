import ast
from pathlib import Path

import pytest

from genjax.errors import InputError

MODULES = sorted((Path(__file__).parents[1] / "genjax").rglob("*.py"))


def literal_text(message: ast.expr) -> str:
    return "".join(part.value for part in ast.walk(message) if isinstance(part, ast.Constant) and part.value is str)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_bad_input_is_told_on_one_line_that_leaves_the_full_stop_to_the_reader(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "InputError":
            pass


def test_callers_that_know_nothing_of_genjax_catch_bad_input_as_a_value_error():
    with pytest.raises(ValueError, match="^depth is at least 1, not 0$"):
        raise InputError("depth is at least 1, not 0")
