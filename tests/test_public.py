"""What is public says so, says what it does, and says what shapes it takes; its mathematics says where it is from."""

import ast
import re
from pathlib import Path

import jax.numpy as jnp
import jaxtyping
import pytest

from genjax.diffusion.process import RectifiedFlow, noised
from genjax.nn.embeddings import timestep_embedding

ROOT = Path(__file__).parents[1]
MODULES = sorted(path for path in (ROOT / "genjax").rglob("*.py") if path.name != "__init__.py")
OFFERS = [
    ROOT / room / "__init__.py"
    for room in ("genjax/config", "genjax/data", "genjax/diffusion/solvers", "pallas_kernels")
]
OTHERS = {"config", "data", "interop", "parallel", "runs", "tasks", "training"}
"""Rooms that are neither networks nor mathematics."""

IN_ROOMS = [path for path in MODULES if path.parent.name not in OTHERS | {"genjax"}]
MATHEMATICS = [path for path in IN_ROOMS if path.parent.name not in ("metrics", "models", "nn")]
SHAPED = {"Float", "Int", "Bool", "Key", "Num", "Shaped", "PyTree", "Callable"}
"""What may have an array inside; of trees and functions the array's shape may be left open."""

SOURCE = re.compile(r"\b(1[5-9]|20)\d\d\b|arXiv")


def from_root(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def declared(tree: ast.Module) -> list[str] | None:
    """The names in `__all__`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return None


def defined(tree: ast.Module) -> dict[str, ast.stmt]:
    """Functions and classes of a module, by name."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name: node for node in tree.body if isinstance(node, kinds)}


def public(tree: ast.Module) -> dict[str, ast.stmt]:
    """Those of them without an underscore."""
    return {name: node for name, node in defined(tree).items() if not name.startswith("_")}


def bound(tree: ast.Module) -> set[str]:
    """All names that a module gives a meaning to."""
    names = set(defined(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.alias):
            names.add(node.asname or node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def without_shape(annotation: ast.expr | None) -> bool:
    """Whether an annotation names an array and not its shape, or is missing."""
    if annotation is None:
        return True
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) in SHAPED:
        return False
    if ast.unparse(annotation) in ("Array", "jax.Array", "np.ndarray", "jnp.ndarray"):
        return True
    return any(without_shape(part) for part in ast.iter_child_nodes(annotation) if isinstance(part, ast.expr))


@pytest.mark.parametrize("path", MODULES, ids=from_root)
def test_what_has_no_underscore_is_declared_and_what_is_declared_is_there(path):
    tree = parsed(path)
    names = declared(tree)
    assert names is not None, "it has no __all__"
    assert set(public(tree)) <= set(names)
    assert set(names) <= bound(tree)


@pytest.mark.parametrize("path", OFFERS, ids=from_root)
def test_a_room_that_offers_names_declares_all_of_them(path):
    assert set(declared(parsed(path))) == bound(parsed(path)) - {"__all__"}


@pytest.mark.parametrize("path", MODULES, ids=from_root)
def test_what_is_public_says_what_it_does(path):
    silent = [name for name, node in public(parsed(path)).items() if not ast.get_docstring(node)]
    assert not silent


@pytest.mark.parametrize("path", IN_ROOMS, ids=from_root)
def test_public_functions_of_networks_mathematics_and_metrics_say_the_shapes_of_their_arrays(path):
    untold = []
    for name, node in public(parsed(path)).items():
        if isinstance(node, ast.FunctionDef):
            arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            untold += [f"{name}({one.arg})" for one in arguments if without_shape(one.annotation)]
            untold += [f"what {name} returns"] * without_shape(node.returns)
    assert not untold


@pytest.mark.parametrize("path", MATHEMATICS, ids=from_root)
def test_mathematics_says_where_it_is_from(path):
    """Somewhere in a file: a year, or a number of arXiv."""
    tree = parsed(path)
    told = [ast.get_docstring(tree), *(ast.get_docstring(node) or "" for node in defined(tree).values())]
    assert any(SOURCE.search(text) for text in told)


def test_the_tests_check_every_shape():
    """By the import hook in conftest.py; in a function of mathematics, and of networks."""
    with pytest.raises(jaxtyping.TypeCheckError, match="eps"):
        noised(RectifiedFlow(), jnp.ones((2, 3)), jnp.ones((2, 4)), jnp.ones(2))
    with pytest.raises(jaxtyping.TypeCheckError, match="'t'"):
        timestep_embedding(jnp.ones((2, 1)), 8)
