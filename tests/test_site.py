"""The site is complete and its pages are true; nothing is built here. `.ci/run` builds it and checks its links."""

import json
import re
import sys
from pathlib import Path

import capabilities
import numpy as np
import pytest

import jaxloss

DOCS = Path(__file__).parent.parent / "docs"
sys.path[:0] = [str(DOCS), str(Path(__file__).parent / "benchmarks")]

import accuracy  # noqa: E402
import pictures  # noqa: E402
import plots  # noqa: E402
import reference  # noqa: E402
import rendered  # noqa: E402

WRITTEN = [path for path in sorted(DOCS.glob("*.md")) if path.name != "many_devices.md"]  # which on_devices.py runs
WITH_CODE = [path for path in WRITTEN if "```python\n" in path.read_text()]


def cells(page, columns):
    """The rows of the tables that have so many columns."""
    lines = [line for line in (DOCS / page).read_text().splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    return [row for row in rows if len(row) == columns and set(row[0]) != {"-"}]


def test_every_public_name_stands_on_one_page():
    names = [name for slug in reference.PAGES for name in reference.on(slug)]
    assert sorted(names) == sorted(reference.public())
    assert {name.split(".")[0] for name in names} == set(jaxloss.__all__)


def test_every_private_file_with_public_functions_has_a_page():
    modules = [module for page in reference.PAGES.values() for module in page.modules]
    assert len(modules) == len(set(modules))
    own = {value.__module__ for name, value in reference.public().items() if "." not in name}
    spaces = {name.split(".")[0] for name in reference.public() if "." in name}
    assert set(modules) == {module.removeprefix("jaxloss.") for module in own} | spaces


@pytest.mark.parametrize("slug", reference.PAGES)
def test_page_of_the_reference_has_formula_arguments_and_example(slug):
    text = reference._page(slug, reference.PAGES[slug])
    entries = text.split("\n## ")[1:]
    assert len(entries) == len(reference.on(slug))
    for entry in entries:
        if "{py:function}" in entry:
            assert all(part in entry for part in ("$$", ":param ", ":returns:", "```pycon", "References:"))
            assert ("{figure}" in entry) == (entry.splitlines()[0] in capabilities.losses())


def test_every_loss_has_a_picture():
    assert set(pictures.SLICES) == set(capabilities.losses())


@pytest.mark.without_x64
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda path: path.stem)
def test_examples_run(page, capsys):
    names: dict = {}
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        exec(block, names)
    if page.stem in ("index", "from_pytorch"):
        assert names["loss"] < 0.35
    if page.stem == "around":
        np.testing.assert_allclose(names["terms"].total, 1.2, rtol=1e-6)
        np.testing.assert_allclose(names["step"], [0.25, 0.75], rtol=1e-6)
        np.testing.assert_allclose(names["weight"], [8 / 18, 8 / 3, 8 / 3], rtol=1e-6)


@pytest.mark.parametrize(
    "row", [row for row in cells("errata.md", 5) if row[4].startswith("`")], ids=lambda row: row[0]
)
def test_errata(row):
    _, _, printed, true, call = row
    value = eval(call.strip("`"), vars(jaxloss))
    np.testing.assert_allclose(value, float(true), atol=5e-7)
    assert abs(float(value) - float(printed)) > 0.01


@pytest.mark.without_x64
def test_our_column_of_the_edges_is_true():
    stored = {case: (true, ours) for case, true, ours, *_ in cells("measured/accuracy.md", 5) if case != "case"}
    assert stored.keys() == {edge.case for edge in accuracy.EDGES}, "run tests/benchmarks/accuracy.py"
    for edge in accuracy.EDGES:
        now = accuracy.shown(eval(edge.ours, accuracy.names()))
        assert stored[edge.case] == (accuracy.shown(edge.true), now), edge.case


def test_results_of_benchmarks_become_figures(tmp_path):
    peers = {"jaxloss": {"ms": 1.0, "compile_ms": 90}, "plain": {"ms": 0.5, "compile_ms": 60}, "optax": {"ms": 2.0}}
    row = {"workload": "mse_loss", "shape": [8, 4], "dtype": "float32", "gradient": True, "peers": peers}
    row["floor_ms"] = 0.8
    grown = [{"workload": "ctc", "axis": "S", "shape": [9, 2, 5, s], "ns": 3.0} for s in (10, 40)]
    results = {"command": "python x", "date": "2026-01-01", "device": "cpu", "cores": 2, "versions": {"jax": "1"}}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "cpu.json").write_text(json.dumps(results | {"speed": [row], "growth": grown}))
    plots.write(tmp_path / "results", tmp_path / "plots")
    text = (tmp_path / "plots" / "performance.md").read_text()
    for name in re.findall(r"plots/(\S+svg)", text):
        assert (tmp_path / "plots" / name).exists()
    assert "| mse_loss | 8 × 4 | float32 | yes | 1 | 0.5 | 2 | 1.25 |" in text
    assert "| mse_loss | float32 | yes | plain | 2.00 |" in text
    assert "in 0 of 1 rows" in text.lower()
    assert "1.50 times as long as the plain formula" in text


def test_notebooks_are_all_shown(tmp_path):
    source = DOCS.parent / "notebooks"
    rendered.copy(source, tmp_path / "shown")
    names = {path.stem for path in source.glob("*.ipynb")}
    assert names == {path.stem for path in (tmp_path / "shown").glob("*.ipynb")}
    listed = (tmp_path / "shown" / "index.md").read_text()
    assert all(f"({name}.ipynb)" in listed for name in names)


def test_pages_speak_of_what_exists():
    public = set(reference.public()) | {"z_loss"}
    for page in WRITTEN:
        named = re.findall(r"`((?:\w+_loss|multitask\.\w+|class_weights\.\w+|spmd\.\w+))`", page.read_text())
        assert page.stem == "from_optax" or set(named) <= public, page.name
