"""The grid of `torch_grid` against torch itself, in every precision."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import CHECKS
from test_torch import ENTRIES, close, ours
from torch_grid import Entry

torch = pytest.importorskip("torch")
torch_reference = pytest.importorskip("torch_reference")


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_live(entry):
    close(ours(entry), torch_reference.run(entry), 1e-10)
    # Float32 against float32: a few units of rounding. Variances of 1e-9 cancel there, in torch as here. In CTC torch's
    # own rounding is more than that.
    peer = torch.float64 if entry.loss == "ctc_loss" else torch.float32
    close(ours(entry, jnp.float32), torch_reference.run(entry, peer), 2e-6)


@pytest.mark.parametrize("entry", ENTRIES[::3], ids=str)
def test_bfloat16_loses_no_more_than_its_input_did(entry):
    rounded = {
        name: np.asarray(jnp.asarray(a, jnp.bfloat16), np.float64) if np.issubdtype(a.dtype, np.floating) else a
        for name, a in entry.arrays.items()
    }
    exact = Entry(entry.id, entry.loss, rounded, entry.options, entry.moving)
    got, expected = ours(exact, jnp.bfloat16, jax.jit), torch_reference.run(exact)
    values = {key for key in got if key.startswith("value")}
    close({k: got[k] for k in values}, {k: expected[k] for k in values}, 2e-6)
    close({k: got[k] for k in got if k not in values}, {k: expected[k] for k in got if k not in values}, 2**-8)


def test_every_loss_of_torch_stands_in_the_documents():
    names = dir(torch.nn.functional)
    losses = {n for n in names if n.endswith(("_loss", "cross_entropy", "_with_logits")) or n == "kl_div"}
    page = (Path(__file__).parent.parent / "docs" / "from_pytorch.md").read_text()
    assert "mse_loss" in losses
    assert not {name for name in losses if f"| `F.{name}" not in page}


def test_the_rows_of_the_documents_are_torchs():
    torch_rows = pytest.importorskip("torch_rows")
    stored = json.loads(torch_rows.GOLDEN.read_text())
    assert stored["arguments"] == torch_rows.signatures()
    assert stored["classes"] == torch_rows.classes()
    for call, value in stored["values"].items():
        np.testing.assert_allclose(torch_rows.value(call), value, rtol=1e-12)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", [case for case, check in CHECKS.items() if check.torchs])
def test_torch_differs_as_the_documents_say(case):
    assert CHECKS[case].torchs(torch, torch.nn.functional)


def test_the_loop_that_the_documents_port_runs():
    page = (Path(__file__).parent.parent / "docs" / "from_pytorch.md").read_text()
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    names = {"batches": [(x, x[:, :3].argmax(1))] * 100}
    (loop,) = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    exec(loop, names)
    assert names["loss"] < 0.4
