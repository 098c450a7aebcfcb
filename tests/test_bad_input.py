"""What a tired person types is refused while tracing, with a message that says what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss

X = jnp.zeros((4, 3))
Y = jnp.array([0, 2, 1, 0])
REAL = jnp.zeros(4)
W = jnp.zeros((5, 3))
PAIRS = [
    jaxloss.l1_loss,
    jaxloss.mse_loss,
    jaxloss.smooth_l1_loss,
    jaxloss.huber_loss,
    jaxloss.poisson_nll_loss,
    jaxloss.binary_cross_entropy,
    jaxloss.binary_cross_entropy_with_logits,
    jaxloss.kl_div,
    jaxloss.hinge_embedding_loss,
    jaxloss.soft_margin_loss,
    jaxloss.sigmoid_focal_loss,
    jaxloss.dice_loss,
    lambda x, t, **options: jaxloss.gaussian_nll_loss(x, t, 1.0, **options),
]
REFUSALS = {
    "(N, 1) classes": (ValueError, "remove the axis of size 1", lambda: jaxloss.cross_entropy(X, Y[:, None])),
    "(N, 1) classes, nll": (ValueError, r"shape \(4,\), got \(4, 1\)", lambda: jaxloss.nll_loss(X, Y[:, None])),
    "one-hot integers": (ValueError, "argmax", lambda: jaxloss.cross_entropy(X, jnp.eye(3, dtype=int)[Y])),
    "float classes": (TypeError, "astype", lambda: jaxloss.cross_entropy(X, Y.astype(float))),
    "float (N, 1) classes": (TypeError, "integers", lambda: jaxloss.cross_entropy(X, Y.astype(float)[:, None])),
    "boolean classes": (TypeError, "integers, got a `target` of bool", lambda: jaxloss.cross_entropy(X, Y > 0)),
    "probabilities of nll": (TypeError, "nll_loss: class indices", lambda: jaxloss.nll_loss(X, X)),
    "probabilities of another shape": (ValueError, "class probabilities", lambda: jaxloss.cross_entropy(X, X[:, :2])),
    "classes last": (
        ValueError,
        "pass `axis=-1`",
        lambda: jaxloss.cross_entropy(jnp.zeros((2, 5, 3)), jnp.zeros((2, 5), int)),
    ),
    "pallas, classes not last": (
        ValueError,
        r"classes on the last axis, got 1 of \(2, 3, 5\)",
        lambda: jaxloss.cross_entropy(jnp.zeros((2, 3, 5)), jnp.zeros((2, 5), int), implementation="pallas"),
    ),
    "negative z_loss": (
        ValueError,
        "`z_loss` must be at least 0, got -1",
        lambda: jaxloss.cross_entropy(X, Y, z_loss=-1),
    ),
    "z_loss None": (TypeError, "`z_loss` must be a number", lambda: jaxloss.cross_entropy(X, Y, z_loss=None)),
    "cap of 0": (ValueError, "greater than 0, got 0", lambda: jaxloss.cross_entropy(X, Y, logit_softcap=0)),
    "cap per row": (ValueError, "single number", lambda: jaxloss.cross_entropy(X, Y, logit_softcap=REAL)),
    "aux of a number": (TypeError, "`aux` must be True or False", lambda: jaxloss.cross_entropy(X, Y, aux=1)),
    "kernel (H, C)": (
        ValueError,
        r"features, got 3 of shape \(4, 3\) and 5 on axis 1 of shape \(3, 5\); .*`feature_axis=0`",
        lambda: jaxloss.linear_cross_entropy(X, W.T, Y),
    ),
    "features that differ": (
        ValueError,
        r"got 3 .* and 7",
        lambda: jaxloss.linear_cross_entropy(X, jnp.zeros((5, 7)), Y),
    ),
    "features in the middle": (
        ValueError,
        "first or the last axis",
        lambda: jaxloss.linear_cross_entropy(X, jnp.zeros((5, 3, 2)), Y, feature_axis=1),
    ),
    "no feature axis": (ValueError, "got a scalar", lambda: jaxloss.linear_cross_entropy(1.0, W, 0)),
    "vector for a weight": (ValueError, "class and a feature axis", lambda: jaxloss.linear_cross_entropy(X, W[0], Y)),
    "layer without classes": (ValueError, "at least one class", lambda: jaxloss.linear_cross_entropy(X, W[:0], Y)),
    "K dimensions of one sample": (
        ValueError,
        r"needs an `input` \(N, H\)",
        lambda: jaxloss.linear_cross_entropy(X[0], jnp.zeros((5, 2, 3)), 0),
    ),
    "pallas in K dimensions": (
        ValueError,
        "two axes",
        lambda: jaxloss.linear_cross_entropy(X, jnp.zeros((5, 2, 3)), jnp.zeros((4, 2), int), implementation="pallas"),
    ),
    "bias per row": (ValueError, "`linear_bias`", lambda: jaxloss.linear_cross_entropy(X, W, Y, linear_bias=REAL)),
    "integer layer": (TypeError, "floating point", lambda: jaxloss.linear_cross_entropy(X, W.astype(int), Y)),
    "classes of a linear layer": (
        ValueError,
        r"shape \(4,\), got \(4, 1\) for logits of shape \(4, 5\)",
        lambda: jaxloss.linear_cross_entropy(X, W, Y[:, None]),
    ),
    "probabilities of a linear layer": (
        ValueError,
        "the shape of the logits",
        lambda: jaxloss.linear_cross_entropy(X, W, X),
    ),
    "ignore with probabilities of a linear layer": (
        ValueError,
        "`ignore_index` has no meaning.*`where=`",
        lambda: jaxloss.linear_cross_entropy(X, W, jnp.zeros((4, 5)), ignore_index=-100),
    ),
    "no chunk": (ValueError, "at least 1, got 0", lambda: jaxloss.linear_cross_entropy(X, W, Y, chunk_size=0)),
    "half a chunk": (TypeError, "`chunk_size`", lambda: jaxloss.linear_cross_entropy(X, W, Y, chunk_size=0.5)),
    "integer accumulator": (
        TypeError,
        "`accumulator_dtype`",
        lambda: jaxloss.linear_cross_entropy(X, W, Y, accumulator_dtype=int),
    ),
    "misspelt keyword": (TypeError, "labelsmoothing", lambda: jaxloss.cross_entropy(X, Y, labelsmoothing=0.1)),
    "positional weight": (TypeError, "positional", lambda: jaxloss.cross_entropy(X, Y, jnp.ones(3))),
    "size_average": (TypeError, "size_average", lambda: jaxloss.mse_loss(REAL, REAL, size_average=True)),
    "smoothing": (
        ValueError,
        "at least 0 and at most 1, got 1.5",
        lambda: jaxloss.cross_entropy(X, Y, label_smoothing=1.5),
    ),
    "smoothing below": (ValueError, "`label_smoothing`", lambda: jaxloss.cross_entropy(X, Y, label_smoothing=-0.1)),
    "smoothing nan": (ValueError, "`label_smoothing`", lambda: jaxloss.cross_entropy(X, Y, label_smoothing=np.nan)),
    "smoothing per row": (ValueError, "single number", lambda: jaxloss.cross_entropy(X, Y, label_smoothing=REAL)),
    "ignore with probabilities": (ValueError, "`where=`", lambda: jaxloss.cross_entropy(X, X, ignore_index=0)),
    "float ignore_index": (TypeError, "`ignore_index`", lambda: jaxloss.cross_entropy(X, Y, ignore_index=1.0)),
    "boolean ignore_index": (TypeError, "`ignore_index`", lambda: jaxloss.cross_entropy(X, Y, ignore_index=True)),
    "implementation": (
        ValueError,
        "'autodiff', got 'fast'",
        lambda: jaxloss.cross_entropy(X, Y, implementation="fast"),
    ),
    "weight per row": (
        ValueError,
        r"one entry per class, shape \(3,\)",
        lambda: jaxloss.cross_entropy(X, Y, weight=REAL),
    ),
    "boolean weight": (TypeError, "real numbers", lambda: jaxloss.cross_entropy(X, Y, weight=jnp.ones(3, bool))),
    "axis": (ValueError, "out of range", lambda: jaxloss.cross_entropy(X, Y, axis=2)),
    "float axis": (TypeError, "`axis`", lambda: jaxloss.cross_entropy(X, Y, axis=1.0)),
    "no class axis": (ValueError, "got a scalar", lambda: jaxloss.cross_entropy(jnp.zeros(()), 0)),
    "no class": (ValueError, "at least one class", lambda: jaxloss.cross_entropy(jnp.zeros((2, 0)), Y[:2])),
    "where of the logits": (ValueError, "`where`", lambda: jaxloss.cross_entropy(X, Y, where=X == 0)),
    "where that is no mask": (TypeError, "boolean", lambda: jaxloss.mse_loss(REAL, REAL, where=jnp.ones(4))),
    "where that is larger": (ValueError, "`where`", lambda: jaxloss.mse_loss(REAL, REAL, where=jnp.ones((2, 4), bool))),
    "weight that broadcasts": (ValueError, "`weight`", lambda: jaxloss.mse_loss(X, X, weight=jnp.ones(3))),
    "weight that is larger": (
        ValueError,
        "`weight`",
        lambda: jaxloss.binary_cross_entropy(REAL, REAL, weight=jnp.ones((2, 4))),
    ),
    "pos_weight on another axis": (
        ValueError,
        "`pos_weight`",
        lambda: jaxloss.binary_cross_entropy_with_logits(X, X, pos_weight=jnp.ones(4)),
    ),
    "beta": (ValueError, "`beta` must be at least 0", lambda: jaxloss.smooth_l1_loss(REAL, REAL, beta=-1)),
    "delta": (ValueError, "greater than 0, got 0", lambda: jaxloss.huber_loss(REAL, REAL, delta=0)),
    "delta per entry": (ValueError, "single number", lambda: jaxloss.huber_loss(REAL, REAL, delta=REAL)),
    "a word for a number": (TypeError, "`beta`", lambda: jaxloss.smooth_l1_loss(REAL, REAL, beta="one")),
    "negative variance": (ValueError, "`var`", lambda: jaxloss.gaussian_nll_loss(REAL, REAL, -1.0)),
    "variance short of two axes": (ValueError, "`var`", lambda: jaxloss.gaussian_nll_loss(X, X, jnp.ones((1, 1)))),
    "kl": (ValueError, "'batchmean', got 'avg'", lambda: jaxloss.kl_div(REAL, REAL, reduction="avg")),
    "eps nan": (
        ValueError,
        "`eps` must be a number, got nan",
        lambda: jaxloss.gaussian_nll_loss(REAL, REAL, 1.0, eps=np.nan),
    ),
    "smoothing None": (TypeError, "a number, got None", lambda: jaxloss.cross_entropy(X, Y, label_smoothing=None)),
    "(N, 1, H) classes": (
        ValueError,
        r"jnp.squeeze\(target, -2\)",
        lambda: jaxloss.cross_entropy(jnp.zeros((2, 3, 5)), jnp.zeros((2, 1, 5), int)),
    ),
    "variance of another shape": (ValueError, "`var`", lambda: jaxloss.gaussian_nll_loss(X, X, jnp.ones(3))),
    "full": (TypeError, "`full`", lambda: jaxloss.gaussian_nll_loss(REAL, REAL, 1.0, full=1)),
    "log_input": (TypeError, "`log_input`", lambda: jaxloss.poisson_nll_loss(REAL, REAL, log_input="no")),
    "log_target": (TypeError, "`log_target`", lambda: jaxloss.kl_div(REAL, REAL, log_target=None)),
    "batchmean elsewhere": (ValueError, "'batchmean'", lambda: jaxloss.mse_loss(REAL, REAL, reduction="batchmean")),
    "integer binary target": (
        TypeError,
        "astype",
        lambda: jaxloss.binary_cross_entropy_with_logits(REAL, jnp.ones(4, int)),
    ),
    "boolean target": (TypeError, "`target`", lambda: jaxloss.mse_loss(REAL, REAL > 0)),
    "ragged list": (TypeError, "`input` must be an array", lambda: jaxloss.mse_loss([[1.0], [1.0, 2.0]], REAL)),
    "None": (TypeError, "`target` must be an array", lambda: jaxloss.mse_loss(REAL, None)),
    "ranking of (N,) and (N, 1)": (
        ValueError,
        r"`input1` and `input2` must have the same shape, got \(4,\) and \(4, 1\)",
        lambda: jaxloss.margin_ranking_loss(REAL, REAL[:, None], REAL),
    ),
    "labels of cosine per entry": (
        ValueError,
        "`target` must have the shape of `input1` without its last axis",
        lambda: jaxloss.cosine_embedding_loss(X, X, jnp.ones(X.shape)),
    ),
    "triplet margin": (
        ValueError,
        "`margin` must be greater than 0",
        lambda: jaxloss.triplet_margin_loss(X, X, X, margin=0),
    ),
    "triplet p": (ValueError, "`p` must be a Python number", lambda: jaxloss.triplet_margin_loss(X, X, X, p=0)),
    "triplet swap": (TypeError, "`swap`", lambda: jaxloss.triplet_margin_loss(X, X, X, swap=1)),
    "triplet without vectors": (
        ValueError,
        "`anchor` must have at least one axis",
        lambda: jaxloss.triplet_margin_loss(1.0, 1.0, 1.0),
    ),
    "distance per entry": (
        ValueError,
        r"one distance for each vector, shape \(4,\), got \(4, 3\)",
        lambda: jaxloss.triplet_margin_with_distance_loss(X, X, X, distance_function=lambda a, b: a - b),
    ),
    "distances that do not broadcast": (
        ValueError,
        r"do not broadcast: `x1` \(4, 3\) and `x2` \(4,\)",
        lambda: jaxloss.pairwise_distance(X, REAL),
    ),
    "cosine axis": (ValueError, "`axis` 1 is out of range", lambda: jaxloss.cosine_similarity(REAL, REAL)),
    "multi_margin p": (ValueError, "`p` must be 1 or 2, got 3", lambda: jaxloss.multi_margin_loss(X, Y, p=3)),
    "multi_margin (N, 1)": (ValueError, "remove the axis of size 1", lambda: jaxloss.multi_margin_loss(X, Y[:, None])),
    "multilabel lists per row": (
        ValueError,
        "`target` must have the shape of `input`",
        lambda: jaxloss.multilabel_margin_loss(X, Y),
    ),
    "multilabel probabilities": (TypeError, "integers", lambda: jaxloss.multilabel_margin_loss(X, X)),
    "gamma": (ValueError, "`gamma` must be at least 0", lambda: jaxloss.softmax_focal_loss(X, Y, gamma=-1)),
    "alpha per row": (ValueError, "`alpha` must have one entry", lambda: jaxloss.softmax_focal_loss(X, Y, alpha=REAL)),
    "focal on integers": (TypeError, "`target`", lambda: jaxloss.sigmoid_focal_loss(REAL, Y)),
    "one class to smooth": (ValueError, "at least 2", lambda: jaxloss.smooth_labels(Y, 1)),
    "integers to logsumexp": (TypeError, "logsumexp", lambda: jaxloss.logsumexp(Y)),
    "axis of log_softmax": (ValueError, "log_softmax: `axis` 2", lambda: jaxloss.log_softmax(X, 2)),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_with_its_remedy(name):
    error, words, call = REFUSALS[name]
    with pytest.raises(error, match=words):
        call()
    with pytest.raises(error, match=words):
        jax.jit(call)()


@pytest.mark.parametrize("loss", PAIRS)
@pytest.mark.parametrize("reduction", ["avg", None, "Mean", 1, ["mean"]])
def test_unknown_reduction(loss, reduction):
    with pytest.raises(ValueError, match="'mean', 'sum', 'none'"):
        loss(REAL, REAL, reduction=reduction)


@pytest.mark.parametrize("loss", PAIRS)
def test_n_against_n_by_1_shows_both_shapes_and_the_remedy(loss):
    with pytest.raises(ValueError, match=r"got \(4,\) and \(4, 1\); remove or add the axis of size 1"):
        loss(REAL, REAL[:, None])
    with pytest.raises(ValueError, match=r"got \(4, 3\) and \(3,\)"):
        loss(X, X[0])


@pytest.mark.parametrize("loss", PAIRS)
def test_integer_and_complex_input(loss):
    for x in (Y, REAL.astype(complex), REAL > 0):
        with pytest.raises(TypeError, match="`input` must be floating point"):
            loss(x, REAL)


def test_python_and_numpy_values_are_welcome():
    by_list = jaxloss.cross_entropy([[1.0, 2.0], [0.0, 1.0]], [1, 0], weight=[1, 2], where=[True, False])
    by_numpy = jaxloss.cross_entropy(
        np.array([[1.0, 2.0], [0.0, 1.0]]), np.array([1, 0]), weight=np.array([1, 2]), where=np.array([True, False])
    )
    assert by_list == by_numpy
    assert jaxloss.mse_loss(1.0, 3.0) == 4
    assert jaxloss.cross_entropy([1.0, 1.0], 0) == pytest.approx(np.log(2))


def test_a_tracer_where_a_static_value_belongs():
    with pytest.raises(TypeError, match="known while tracing"):
        jax.jit(lambda i: jaxloss.cross_entropy(X, Y, ignore_index=i))(1)
    with pytest.raises(TypeError, match="`full`"):
        jax.jit(lambda full: jaxloss.gaussian_nll_loss(REAL, REAL, 1.0, full=full))(True)


def test_forward_mode_leads_to_the_implementation_that_has_it():
    def loss(x, implementation):
        return jaxloss.cross_entropy(x, Y, implementation=implementation)

    with pytest.raises(TypeError, match="custom_vjp") as refusal:
        jax.jvp(lambda x: loss(x, "auto"), (X,), (X,))
    assert "implementation='autodiff'" in refusal.value.__notes__[0]
    with pytest.raises(TypeError, match="custom_vjp") as refusal:
        jax.jvp(jaxloss.logsumexp, (X,), (X,))
    assert "use jax.nn.logsumexp" in refusal.value.__notes__[0]
    value, tangent = jax.jvp(lambda x: loss(x, "autodiff"), (X,), (jnp.eye(4, 3, dtype=X.dtype),))
    assert value == loss(X, "auto")
    expected = jnp.sum(jax.grad(loss)(X, "auto") * jnp.eye(4, 3))
    assert tangent == pytest.approx(float(expected), abs=1e-7)
