"""Every number of the source documents, D0 to D4; four of those they print contradict their own formulas."""

from dataclasses import dataclass, field
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss

pytestmark = pytest.mark.without_x64


@dataclass(frozen=True)
class Row:
    """One numeric example. `printed` is what the document shows where that is wrong."""

    id: str
    loss: Any
    args: tuple[Any, ...]
    value: Any
    options: dict[str, Any] = field(default_factory=dict)
    printed: float | None = None

    def __str__(self) -> str:
        return self.id


D0_LOGITS = [[2.0, 0.5, 0.3], [0.1, 3.0, 0.2], [0.2, 0.1, 4.0]]
D0_BINARY = [2.0, -1.0, 0.5, -3.0]
D0_REAL = ([2.5, 0.5, 2.0, 8.0], [3.0, -0.5, 2.0, 7.0])
D2_REAL = ([1.0, 2.0, 3.0], [1.5, 2.5, 3.5])
D2_LOGITS = ([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]], [2, 0])
D3_REAL = ([2.5, 0.0, 2.0], [3.0, -0.5, 2.0])


def bce_of_sigmoid(x, t):
    return jaxloss.binary_cross_entropy(jax.nn.sigmoid(jnp.asarray(x)), t)


def mean_of_weighted_squares(x, t, w):
    total, _ = jaxloss.mse_loss(x, t, weight=w, reduction="sum_and_weight")
    return total / len(x)


ROWS = [
    Row("D0-ce", jaxloss.cross_entropy, (D0_LOGITS, [0, 1, 2]), 0.163982, printed=0.1763),
    Row("D0-ce-ls", jaxloss.cross_entropy, (D0_LOGITS, [0, 1, 2]), 0.348427, {"label_smoothing": 0.1}),
    Row("D0-bce", bce_of_sigmoid, (D0_BINARY, [1.0, 0.0, 1.0, 0.0]), 0.240714, printed=0.2824),
    Row("D0-bcel", jaxloss.binary_cross_entropy_with_logits, (D0_BINARY, [1.0, 0.0, 1.0, 0.0]), 0.240714),
    Row(
        "D0-bcel-pw",
        jaxloss.binary_cross_entropy_with_logits,
        (D0_BINARY, [1.0, 0.0, 1.0, 0.0]),
        1.592975,
        {"pos_weight": [10.0]},
    ),
    Row("D0-mse", jaxloss.mse_loss, D0_REAL, 0.5625, printed=0.3750),
    Row("D0-l1", jaxloss.l1_loss, D0_REAL, 0.625, printed=0.5000),
    Row("D0-sl1", jaxloss.smooth_l1_loss, D0_REAL, 0.28125),
    Row("D2-mse", jaxloss.mse_loss, D2_REAL, 0.25),
    Row("D2-mse-sum", jaxloss.mse_loss, D2_REAL, 0.75, {"reduction": "sum"}),
    Row("D2-mse-none", jaxloss.mse_loss, D2_REAL, [0.25, 0.25, 0.25], {"reduction": "none"}),
    Row("D2-l1", jaxloss.l1_loss, D2_REAL, 0.5),
    Row("D2-ce", jaxloss.cross_entropy, D2_LOGITS, 0.753109),
    Row("D2-ce-none", jaxloss.cross_entropy, D2_LOGITS, [0.407606, 1.098612], {"reduction": "none"}),
    Row("D2-ce-w", jaxloss.cross_entropy, D2_LOGITS, 0.580358, {"weight": [1.0, 2.0, 3.0]}),
    Row("D2-ce-ls", jaxloss.cross_entropy, D2_LOGITS, 0.803109, {"label_smoothing": 0.1}),
    Row("D2-bce", jaxloss.binary_cross_entropy, ([0.5, 0.7, 0.3], [1.0, 1.0, 0.0]), 0.468832),
    Row("D2-bcel", jaxloss.binary_cross_entropy_with_logits, ([0.0, 0.8, -0.5], [1.0, 1.0, 0.0]), 0.512775),
    Row("D3-mse", jaxloss.mse_loss, D3_REAL, 0.166667),
    Row("D3-l1", jaxloss.l1_loss, D3_REAL, 0.333333),
    Row("D3-huber", jaxloss.huber_loss, D3_REAL, 0.083333, {"delta": 1.0}),
    Row("D3-ce", jaxloss.cross_entropy, ([[2.0, 1.0, 0.1]], [0]), 0.417030),
    Row("D3-bcel", jaxloss.binary_cross_entropy_with_logits, ([0.8, -0.5, 1.2], [1.0, 0.0, 1.0]), 0.369487),
    Row("D3-wmse", mean_of_weighted_squares, (*D3_REAL, [1.0, 2.0, 3.0]), 0.25),
]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_value(row):
    got = row.loss(*(jnp.asarray(a) for a in row.args), **row.options)
    np.testing.assert_allclose(got, row.value, rtol=2e-6, atol=5e-7)
    if row.printed is not None:
        assert abs(float(got) - row.printed) > 0.01, "the document's misprint"


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_lists_as_the_documents_write_them(row):
    np.testing.assert_allclose(row.loss(*row.args, **row.options), row.value, rtol=2e-6, atol=5e-7)


def test_cross_entropy_is_nll_of_log_softmax():
    x = jax.random.normal(jax.random.key(0), (4, 7, 3))
    y = jax.random.randint(jax.random.key(1), (4, 3), 0, 7)
    chex.assert_trees_all_close(jaxloss.cross_entropy(x, y), jaxloss.nll_loss(jaxloss.log_softmax(x, 1), y), rtol=1e-6)


def test_smoothing_by_hand_is_torchs_with_another_number():
    # D2 puts s/(C-1) on every other class; label_smoothing puts s/C on every class.
    logits, y, s = jax.random.normal(jax.random.key(0), (6, 5)), jnp.arange(6) % 5, 0.2
    by_hand = jnp.where(jax.nn.one_hot(y, 5) == 1, 1 - s, s / 4)
    chex.assert_trees_all_close(jaxloss.smooth_labels(y, 5, smoothing=s), by_hand, rtol=1e-6)
    chex.assert_trees_all_close(
        jaxloss.cross_entropy(logits, by_hand),
        jaxloss.cross_entropy(logits, y, label_smoothing=s * 5 / 4),
        rtol=1e-6,
    )


def test_smooth_labels_puts_the_class_axis_where_cross_entropy_wants_it():
    y = jnp.array([[0, 2], [1, 7]])
    q = jaxloss.smooth_labels(y, 3, smoothing=0.5)
    assert q.shape == (2, 3, 2)
    assert q[0, :, 1].tolist() == [0.25, 0.25, 0.5]
    assert jnp.isnan(q[1, :, 1]).all()
    assert jaxloss.smooth_labels(y, 3, axis=-1).shape == (2, 2, 3)


def test_points_with_classes_last_need_no_flattening():
    # D4: logits (N, L, C) and labels (N, L), flattened by hand there.
    logits = jax.random.normal(jax.random.key(0), (2, 9, 4))
    y = jax.random.randint(jax.random.key(1), (2, 9), 0, 4)
    chex.assert_trees_all_close(
        jaxloss.cross_entropy(logits, y, axis=-1),
        jaxloss.cross_entropy(logits.reshape(-1, 4), y.reshape(-1)),
        rtol=1e-6,
    )


def test_mean_of_chunks_weighted_by_their_size():
    # D1 weighs each chunk's mean by its length; the pair does so for any weights.
    x, t = jax.random.normal(jax.random.key(0), (10, 3)), jnp.ones((10, 3))
    parts = [jaxloss.mse_loss(x[i : i + 4], t[i : i + 4], reduction="sum_and_weight") for i in (0, 4, 8)]
    total, weight = (sum(column) for column in zip(*parts, strict=True))
    chex.assert_trees_all_close(total / weight, jaxloss.mse_loss(x, t), rtol=1e-6)
