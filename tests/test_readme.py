"""The README does what it says."""

import re
from pathlib import Path

import capabilities
import numpy as np
import pytest

import jaxloss

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.without_x64
def test_its_examples_run_and_keep_their_promises(capsys):
    first, second, third, fourth = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(first, names)
    assert names["loss"] < 0.31
    assert np.isclose(
        names["loss_fn"](names["optimizer"].init(names["params"])[0].mu, names["x"], names["y"]), np.log(3)
    )
    exec(second, names)
    np.testing.assert_allclose(
        names["total"] / names["weight"], jaxloss.cross_entropy(names["logits"], names["labels"])
    )
    exec(third, names)
    np.testing.assert_allclose(names["terms"].total, 1.2, rtol=1e-6)
    np.testing.assert_allclose(list(names["terms"].weighted.values()), [0.7, 0.5, 0], rtol=1e-6)
    assert names["log_variances"] == {"class": 0, "box": 0}
    np.testing.assert_allclose(names["direction"], [0.25, 0.75], rtol=1e-6)
    capsys.readouterr()
    exec(fourth, names)
    printed = capsys.readouterr().out
    (shown,) = re.findall(r"```text\n(.*?)```", README, re.DOTALL)
    assert all(line in printed for line in shown.splitlines() if line.strip() != "...")


def test_every_public_function_stands_on_the_page_of_torch():
    page = (ROOT / "docs" / "from_pytorch.md").read_text()
    for name in dir(jaxloss):
        if not name.startswith("_"):
            assert f"`{name}" in page, name


def test_its_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)#]+)", README)
    assert "docs/from_pytorch.md" in targets
    for target in targets:
        assert (ROOT / target).exists(), target


def test_it_counts_the_losses():
    assert f"{len(capabilities.losses())} losses" in README
