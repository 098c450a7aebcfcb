"""Every argument of torch's, optax's and Keras's losses has a row in docs/, and each is true; where a peer is wrong."""

import inspect
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from migration import arguments, arrays, names, rows

import jaxloss

TORCH_STORED = json.loads((Path(__file__).parent / "golden_torch_rows.json").read_text())
STORED = json.loads((Path(__file__).parent / "golden_peers.json").read_text())
OPTAX = [(theirs[0], ours) for theirs, ours in rows("from_optax.md") if ours]
KERAS = [(theirs[0], ours) for theirs, ours in rows("from_keras.md") if ours]
TORCH = [(theirs[0], ours) for theirs, ours in rows("from_pytorch.md") if ours]


def ours_on_the_arrays(call):
    more = {"jnp": jnp, "far": lambda a, b: abs(a - b).sum(-1)}
    return eval(call, {**vars(jaxloss), **arrays(), **more})


def pairs(signatures):
    return {(name, argument) for name, arguments in signatures.items() for argument in arguments}


def test_every_argument_of_torch_has_a_row():
    assert pairs(TORCH_STORED["arguments"]) - arguments("from_pytorch.md", TORCH_STORED["arguments"]) == set()
    assert set(TORCH_STORED["classes"]) <= {name for theirs, _ in rows("from_pytorch.md") for name in theirs}


@pytest.mark.parametrize(("theirs", "ours"), TORCH, ids=[theirs.split("(")[0] for theirs, _ in TORCH])
def test_row_of_torch(theirs, ours):
    expected = TORCH_STORED["values"][theirs]
    np.testing.assert_allclose(ours_on_the_arrays(ours), expected, rtol=1e-12, atol=1e-14)


def test_every_argument_of_optax_has_a_row():
    public = [name for name in dir(optax.losses) if not name.startswith("_")]
    signatures = {name: list(inspect.signature(getattr(optax.losses, name)).parameters) for name in public}
    if optax.__version__ == "0.2.8":
        assert pairs(signatures) - arguments("from_optax.md", signatures) == set()


def test_every_argument_of_keras_has_a_row():
    signatures = {n: a for n, a in STORED["keras_arguments"].items() if n not in ("get", "serialize", "deserialize")}
    assert pairs(signatures) - arguments("from_keras.md", signatures) == set()


def test_every_name_of_optax_has_a_row():
    public = {name for name in dir(optax.losses) if not name.startswith("_")}
    assert public <= names("from_optax.md")
    if optax.__version__ == "0.2.8":
        assert public == names("from_optax.md")


def test_every_name_of_keras_has_a_row():
    assert names("from_keras.md") == set(STORED["keras_names"])


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize(("theirs", "ours"), OPTAX, ids=[theirs.split("(")[0] for theirs, _ in OPTAX])
def test_row_of_optax(theirs, ours):
    if theirs.split("(")[0] not in dir(optax.losses):
        pytest.skip(f"optax {optax.__version__} has not got it")
    given = {name: jnp.asarray(a) for name, a in arrays().items()}
    expected = eval(theirs, {**vars(optax.losses), **given, "jax": jax, "jnp": jnp})
    np.testing.assert_allclose(ours_on_the_arrays(ours), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("theirs", "ours"), KERAS, ids=[theirs.split("(")[0] for theirs, _ in KERAS])
def test_row_of_keras(theirs, ours):
    # Keras adds 1e-7 in many places.
    np.testing.assert_allclose(ours_on_the_arrays(ours), STORED["keras_values"][theirs], rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("name", [name for name in STORED["torchvision"] if name != "version"])
def test_boxes_of_torchvision(name):
    first, second = np.moveaxis(np.array(STORED["boxes"]), 1, 0)
    stored = STORED["torchvision"][name]
    loss = getattr(jaxloss, name)
    np.testing.assert_allclose(loss(first, second, reduction="none"), stored["loss"], rtol=1e-12, atol=1e-15)
    grads = jax.grad(lambda *boxes: loss(*boxes, reduction="sum"), (0, 1))(first, second)
    np.testing.assert_allclose(grads, stored["gradients"], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("p", [1, 3])
def test_optax_cancels_signs_in_the_triplet_loss(p):
    # The documents' points: |(-0.3, -0.9)|₁ = 1.2, but -0.3 - 0.9 is negative.
    a, pos, neg = (jnp.array([v]) for v in ([0.0, 0.0], [0.3, 0.9], [1.0, 0.0]))
    ours = jaxloss.triplet_margin_loss(a, pos, neg, p=p, eps=0.0)
    expected, _ = oracles.triplet_margin_loss(a, pos, neg, p=p, eps=0.0)
    np.testing.assert_allclose(ours, expected[0], rtol=1e-12)
    theirs = optax.losses.triplet_margin_loss(a, pos, neg, norm_degree=p, eps=0.0)[0]
    assert not np.isclose(theirs, ours)


def test_a_batch_without_a_positive_pair_is_nan_in_optax_and_adds_nothing_here():
    x, labels = jnp.asarray(arrays()["a"]), jnp.arange(4)
    assert np.isnan(optax.losses.ntxent(x, labels))
    value, grad = jax.value_and_grad(lambda x: jaxloss.nt_xent_loss(x, labels))(x)
    assert np.isnan(value)
    assert (grad == 0).all()
    assert jaxloss.nt_xent_loss(x, labels, reduction="sum_and_weight") == (0, 0)


def test_optax_dice_of_probabilities_does_not_compile_and_ours_needs_none():
    if not hasattr(optax.losses, "dice_loss"):
        pytest.skip(f"optax {optax.__version__} has no dice_loss")
    pixels, truth = (jnp.asarray(arrays()[name]) for name in ("pixels", "truth"))

    def theirs(pixels):
        return optax.losses.dice_loss(jax.nn.softmax(pixels), truth, smooth=0.5, apply_softmax=False)

    with pytest.raises(jax.errors.TracerBoolConversionError):
        jax.jit(theirs)(pixels)
    ours = jax.jit(lambda x: jaxloss.dice_loss(x, truth, mode="multiclass", axis=-1, per_sample=True))(pixels)
    np.testing.assert_allclose(ours, theirs(pixels).mean(), rtol=1e-6)
