"""Imports point down: types < numerics < lattice < kernels and checks < labels, tail < families, which stay apart."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "jaxloss"
LAYERS = [
    {"_types"},
    {"_numerics", "_wide"},
    {"_lattice"},
    {"_kernels", "_check"},
    {"_labels", "_reduce"},
    {"_sequences"},
]
FAMILIES = {
    "_binary",
    "_categorical",
    "_ctc",
    "_ctc_alignment",
    "_embedding",
    "_focal",
    "_margin",
    "_regression",
    "_segmentation",
    "_softmax",
}
NAMESPACES = {"class_weights"}
MODULES = sorted(PACKAGE.rglob("*.py"))
each = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))


def name_of(path: Path) -> str:
    """A file's name in the table of layers, or that of its folder."""
    return path.stem if path.parent == PACKAGE else path.parent.name


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


@each
def test_imports_point_down(path):
    assert imports(path) <= below(name_of(path))


@each
def test_only_kernels_know_pallas(path):
    assert path.parent.name == "_kernels" or "pallas" not in path.read_text().replace('"pallas"', "").replace(
        "'pallas'", ""
    )


def test_every_module_has_its_layer():
    known = set().union(*LAYERS) | FAMILIES | NAMESPACES | {"__init__"}
    assert {name_of(path) for path in MODULES} == known


def test_the_public_surface_is_one_screen_of_reexports():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    docstring, *statements = tree.body
    assert isinstance(docstring, ast.Expr)
    for node in statements:
        assert isinstance(node, ast.ImportFrom)
        assert [alias.asname for alias in node.names] == [alias.name for alias in node.names]
    assert len((PACKAGE / "__init__.py").read_text().splitlines()) <= 60
