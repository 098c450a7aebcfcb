"""Imports point down: types < numerics < checks < labels, tail < rows < families; families never import each other."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "jaxloss"
LAYERS = [{"_types"}, {"_numerics"}, {"_check", "_kernels"}, {"_labels", "_reduce"}, {"_rows", "_chunks"}]
FAMILIES = {
    "_binary",
    "_categorical",
    "_embedding",
    "_focal",
    "_linear_cross_entropy",
    "_margin",
    "_regression",
    "_segmentation",
    "_softmax",
}
NAMESPACES = {"class_weights"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def name(path: Path) -> str:
    """A file's place in the layers; a folder has one for all of its files."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def below(module: str) -> set[str]:
    lower: set[str] = set()
    for layer in LAYERS:
        if module in layer:
            return lower
        lower |= layer
    return lower if module in FAMILIES | NAMESPACES else lower | FAMILIES | NAMESPACES


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not any(name and name.split(".")[0] == "jaxloss" for name in names), "relative imports only"
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_imports_point_down(path):
    assert imports(path) <= below(name(path))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_only_kernels_know_pallas(path):
    assert path.parent.name == "_kernels" or "pallas" not in path.read_text().replace('"pallas"', "")


def test_every_module_has_its_layer():
    known = set().union(*LAYERS) | FAMILIES | NAMESPACES | {"__init__"}
    assert {name(path) for path in MODULES} == known


def test_the_public_surface_is_one_screen_of_reexports():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    docstring, *statements = tree.body
    assert isinstance(docstring, ast.Expr)
    for node in statements:
        assert isinstance(node, ast.ImportFrom)
        assert [alias.asname for alias in node.names] == [alias.name for alias in node.names]
    assert len((PACKAGE / "__init__.py").read_text().splitlines()) <= 60
