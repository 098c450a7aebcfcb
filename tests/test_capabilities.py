"""docs/capabilities.md says what the losses can. Nothing is compiled."""

import inspect

import capabilities
import jax
import jax.numpy as jnp
import pytest
from cases import CASES, CUSTOM_VJP, differentiable

import jaxloss

each = pytest.mark.parametrize("name", capabilities.losses())


def a_case(name):
    """The plainest row of the table."""
    return next(
        case for case in CASES if case.loss.__name__ == name and case.static.get("implementation") != "autodiff"
    )


def test_the_page_is_what_the_script_writes():
    assert capabilities.PAGE.read_text() == capabilities.page(), "run tests/capabilities.py"


def lower_forward(case, **options):
    arrays = case.data()
    moving = differentiable(arrays)
    fixed = {name: a for name, a in arrays.items() if name not in moving}

    def loss(moving):
        return case.loss(**moving, **fixed, **case.options | options)

    jax.jit(lambda moving: jax.jvp(loss, (moving,), (moving,))).lower(moving)


@each
def test_forward_mode(name):
    case = a_case(name)
    if case.loss in CUSTOM_VJP:
        with pytest.raises((TypeError, ValueError), match=r"autodiff|forward-mode"):
            lower_forward(case, implementation="xla")
        lower_forward(case, implementation="autodiff")
    else:
        lower_forward(case)


@pytest.mark.parametrize("name", [name for name in capabilities.losses() if capabilities.classes_as(name)])
def test_class_probabilities(name):
    case = a_case(name)
    arrays = {k: a for k, a in case.data().items() if k not in ("target", "weight", "alpha", "pos_weight")}
    shape = (5, 7) if case.loss is jaxloss.linear_cross_entropy else arrays["input"].shape
    soft = jax.ShapeDtypeStruct(shape, jnp.float64)
    options = {"mode": "multiclass"} if "mode" in inspect.signature(case.loss).parameters else {}
    options |= {k: v for k, v in case.static.items() if k == "feature_axis"}

    def of_probabilities(target):
        return case.loss(**arrays, target=target, **options)

    if "probabilities" in capabilities.classes_as(name):
        jax.eval_shape(of_probabilities, soft)
    else:
        with pytest.raises((TypeError, ValueError)):
            jax.eval_shape(of_probabilities, soft)
