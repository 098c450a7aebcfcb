"""Copies the notebooks, as they are committed, to where Sphinx finds them, in the order in which to read them."""

import json
import shutil
from pathlib import Path

# What is not named here comes behind, by name: a new notebook needs no line.
FIRST = ("tour", "digits", "segmentation", "imbalance", "robust_regression", "metric_learning", "distillation")


def copy(source: Path, target: Path) -> None:
    """Every notebook with outputs, and a page that lists them."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    names = sorted((path.stem for path in source.glob("*.ipynb")), key=_place)
    for name in names:
        (target / f"{name}.ipynb").write_text(_moved((source / f"{name}.ipynb").read_text()))
        if (source / f"{name}.py").exists():
            shutil.copy(source / f"{name}.py", target)  # which a notebook may link to
    lines = [f"| [{_title(source / f'{name}.ipynb')}]({name}.ipynb) | `notebooks/{name}.py` |" for name in names]
    (target / "index.md").write_text(PAGE.format(rows="\n".join(lines), names="\n".join(names)))


def _moved(text: str) -> str:
    """Its links into docs/ and to the README, as they are from where it is shown."""
    return text.replace("](../docs/", "](../").replace("](../README.md", "](../index.md")


def _place(name: str) -> tuple[int, str]:
    return (FIRST.index(name) if name in FIRST else len(FIRST), name)


def _title(path: Path) -> str:
    """The first heading."""
    cells = json.loads(path.read_text())["cells"]
    lines = "".join("".join(cell["source"]) + "\n" for cell in cells if cell["cell_type"] == "markdown").splitlines()
    return next((line.removeprefix("# ") for line in lines if line.startswith("# ")), path.stem)


PAGE = """# Notebooks

Whole trainings, each a script that runs in minutes on a laptop and a notebook with what it printed and drew. Run one
from a clone with `.venv/bin/python notebooks/NAME.py`, after `pip install -e '.[notebooks]'`.

| notebook | script |
| --- | --- |
{rows}

```{{toctree}}
:hidden:

{names}
```
"""
