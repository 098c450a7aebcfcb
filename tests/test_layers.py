"""Imports point down, from namespaces to types; families, and what is around the losses, stay apart."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "jaxloss"
LAYERS = [
    {"_types"},
    {"_devices"},
    {"_numerics", "_wide"},
    {"_lattice"},
    {"_kernels", "_check"},
    {"_labels", "_reduce"},
    {"_chunks", "_rows", "_sequences", "_gram", "_tasks"},
    {"_calls", "_weighting"},
    {"_diagnosis", "_rules"},
    {"_hints"},
]
FAMILIES = {
    *("_binary", "_boxes", "_categorical", "_chunked", "_classes", "_contrastive", "_ctc", "_ctc_alignment"),
    *("_divergence", "_embedding", "_errors", "_focal", "_hinge", "_linear_cross_entropy", "_margin", "_regression"),
    *("_segmentation", "_softmax"),
}
AROUND = {"_checked", "_diagnose", "_aggregation", "_gradnorm"}
NAMESPACES = {"class_weights", "multitask", "spmd"}
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
    if module in FAMILIES | AROUND:
        return lower
    return lower | AROUND if module in NAMESPACES else lower | FAMILIES | AROUND | NAMESPACES


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1 and path.parent != PACKAGE:
            continue  # from its own folder
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
    known = set().union(*LAYERS) | FAMILIES | AROUND | NAMESPACES | {"__init__"}
    assert {name_of(path) for path in MODULES} == known


def test_the_public_surface_is_one_screen_of_reexports():
    text = (PACKAGE / "__init__.py").read_text()
    docstring, *imports, exported = ast.parse(text).body
    assert isinstance(docstring, ast.Expr)
    reexported = []
    for node in imports:
        assert isinstance(node, ast.ImportFrom)
        assert node.level == 1
        assert all(alias.asname is None and alias.name != "*" for alias in node.names)
        reexported += [alias.name for alias in node.names]
    assert isinstance(exported, ast.Assign)
    assert [target.id for target in exported.targets] == ["__all__"]
    # Each name once in either: an import without its export, or an export of nothing, would not be equal.
    assert sorted(ast.literal_eval(exported.value)) == sorted(reexported)
    assert len(set(reexported)) == len(reexported)
    assert len(text.splitlines()) <= 60
    assert max(map(len, text.splitlines())) <= 120
