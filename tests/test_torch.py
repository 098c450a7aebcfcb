"""The grid of `torch_grid` against the values and gradients stored from torch."""

import inspect
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick
from cases import MORE
from torch_grid import Entry, grid

import jaxloss

ENTRIES = grid()


def stored() -> tuple[dict[str, Entry], dict[str, dict[str, np.ndarray]]]:
    """Entries and results as they were stored: one line of numbers, cut up as the index says."""
    with np.load(Path(__file__).parent / "golden.npz") as file:
        index, numbers = json.loads(str(file["index"]))["entries"], file["numbers"]
    entries, results = {}, {}
    for name, about in index.items():
        arrays = {}
        for key, (dtype, shape) in about["arrays"].items():
            size = math.prod(shape)
            arrays[key], numbers = numbers[:size].astype(dtype).reshape(shape), numbers[size:]
        given = {key.removeprefix("array/"): a for key, a in arrays.items() if key.startswith("array/")}
        entries[name] = Entry(name, about["loss"], given, about["options"], tuple(about["moving"]))
        results[name] = {key: a for key, a in arrays.items() if not key.startswith("array/")}
    return entries, results


STORED_ENTRIES, STORED = stored()


def ours(entry: Entry, dtype=jnp.float64, jit=quick.jit) -> dict[str, np.ndarray]:
    """What `torch_reference.run` gives, from jaxloss."""
    arrays = {
        name: jnp.asarray(a, dtype if np.issubdtype(a.dtype, np.floating) else None) for name, a in entry.arrays.items()
    }
    fixed = {name: a for name, a in arrays.items() if name not in entry.moving}

    @jit
    def results(moving):
        out = {}
        for reduction in entry.reductions:

            def loss(moving, reduction=reduction):
                if entry.loss == "ctc_loss":  # see the grid
                    moving = {"log_probs": jaxloss.log_softmax(moving["log_probs"])}
                return getattr(jaxloss, entry.loss)(**entry.call({**moving, **fixed}, reduction))

            value, pull = jax.vjp(loss, moving)
            (grads,) = pull(jnp.asarray(entry.cotangent(value.shape), value.dtype))
            out[f"value/{reduction}"] = value
            out |= {f"gradient/{reduction}/{name}": g for name, g in grads.items()}
        return out

    return {key: np.asarray(a) for key, a in results({name: arrays[name] for name in entry.moving}).items()}


def close(got, expected, rounding):
    """Within `rounding` of the largest number that entered, which is what a sum can lose."""
    assert got.keys() == expected.keys()
    for key in got:
        a, b = np.asarray(got[key], np.float64), np.asarray(expected[key], np.float64)
        np.testing.assert_allclose(a, b, rtol=rounding, atol=rounding * max(1, np.abs(b).max(initial=0)), err_msg=key)


def test_the_grid_is_what_was_stored():
    assert [e.id for e in ENTRIES] == list(STORED_ENTRIES), "run tests/torch_reference.py"
    for entry in ENTRIES:
        was = STORED_ENTRIES[entry.id]
        assert entry.options == was.options
        assert entry.arrays.keys() == was.arrays.keys()
        for name, a in entry.arrays.items():
            np.testing.assert_allclose(a, was.arrays[name], rtol=1e-12)


def test_the_grid_reaches_every_function_that_torch_has_too():
    ours_alone = {"dice_loss", "iou_loss", "tversky_loss", "sigmoid_focal_loss", "softmax_focal_loss", "smooth_labels"}
    ours_alone |= {"ctc_loss_with_logits", "ctc_alignment", "ctc_posteriors", "checked", "diagnose", "chunked"}
    ours_alone |= {case.loss.__name__ for case in MORE}
    of_torch = {name for name in dir(jaxloss) if inspect.isfunction(getattr(jaxloss, name))} - ours_alone
    assert {entry.loss for entry in ENTRIES} | {"logsumexp", "log_softmax"} == of_torch


@pytest.mark.parametrize("name", STORED)
def test_stored_values_and_gradients(name):
    close(ours(STORED_ENTRIES[name]), STORED[name], 1e-10)
