"""The public surface: names, signatures, docstrings, and that everything lowers for every platform."""

import inspect
import re

import chex
import jax
import jax.numpy as jnp
import pytest
import quick
from cases import CASES
from jax import export

import jaxloss

NAMESPACES = {name: getattr(jaxloss, name) for name in ("class_weights", "multitask", "spmd")}
PUBLIC = {name: getattr(jaxloss, name) for name in dir(jaxloss) if not name.startswith("_") and name not in NAMESPACES}
HELPERS = {
    "logsumexp",
    "log_softmax",
    "pairwise_distance",
    "cosine_similarity",
    "smooth_labels",
    "ctc_alignment",
    "ctc_posteriors",
    "chunked",
}
AROUND = {"checked", "diagnose"}  # functions of losses
WITH_KERNEL = {jaxloss.ctc_loss, jaxloss.ctc_loss_with_logits}
LOSSES = {name: f for name, f in PUBLIC.items() if name not in HELPERS | AROUND}
INSIDE = {
    f"{space}.{name}": f
    for space, module in NAMESPACES.items()
    for name, f in vars(module).items()
    if inspect.isfunction(f) and name in getattr(module, "__all__", [name]) and not name.startswith("_")
    if f.__module__ == module.__name__ or hasattr(module, "__all__")
}
DOCUMENTED = PUBLIC | INSIDE
TAIL = ("weight", "axis", "where", "reduction")
SECTIONS = ("Args", "Returns", "Raises", "Example", "References")


def test_every_name_is_a_function_of_this_package():
    assert LOSSES
    for name, function in DOCUMENTED.items():
        assert inspect.isfunction(function), name
        assert function.__name__ == name.split(".")[-1]


def test_every_loss_stands_in_the_table_of_cases():
    assert {case.loss for case in CASES} == set(LOSSES.values())


@pytest.mark.parametrize("name", LOSSES)
def test_keyword_order(name):
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    arrays = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert len(arrays) + len(keywords) == len(parameters)
    first = ("input", "input1", "anchor", "query", "image_features", "boxes1", "log_probs", "logits")
    assert arrays[0] in first
    tail = [k for k in keywords if k in TAIL]
    assert keywords[-len(tail) :] == tail == [k for k in TAIL if k in tail]
    assert {"where", "reduction"} <= set(tail)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_docstring_has_every_section(name):
    function = DOCUMENTED[name]
    doc = inspect.getdoc(function)
    formula = doc.index("$$")
    found = [doc.index(f"\n{section}:\n") for section in SECTIONS]
    assert found == sorted(found)
    assert formula < found[0], "the formula comes first"
    described = re.findall(r"^    (\w+): ", doc[found[0] : found[1]], re.MULTILINE)
    assert described == list(inspect.signature(function).parameters)
    assert f"jaxloss.{name}(" in doc[found[3] : found[4]]
    assert doc[found[4] :].strip()


def single(arrays):
    """In the precision that every platform has."""
    return {
        n: jnp.asarray(a, jnp.float32 if jnp.issubdtype(a.dtype, jnp.floating) else jnp.int32)
        for n, a in arrays.items()
    }


CALLS = {str(case): (case.loss, single(case.data()), case.options) for case in {c.loss: c for c in CASES}.values()} | {
    "logsumexp": (jaxloss.logsumexp, {"input": jnp.ones((4, 5))}, {}),
    "log_softmax": (jaxloss.log_softmax, {"input": jnp.ones((4, 5))}, {}),
    "pairwise_distance": (jaxloss.pairwise_distance, {"x1": jnp.ones((4, 5)), "x2": jnp.zeros((4, 5))}, {}),
    "cosine_similarity": (jaxloss.cosine_similarity, {"x1": jnp.ones((4, 5)), "x2": jnp.eye(4, 5)}, {}),
    **{
        name: (
            PUBLIC[name],
            {"log_probs": jnp.zeros((4, 1, 3)), "targets": jnp.array([[1, 2]])},
            {"input_lengths": jnp.array([4]), "target_lengths": jnp.array([2])},
        )
        for name in ("ctc_alignment", "ctc_posteriors")
    },
    "smooth_labels": (jaxloss.smooth_labels, {"target": jnp.array([0, 2])}, {"num_classes": 3}),
    **{
        name: (f, {"counts": jnp.array([3.0, 1.0])}, {"total": 5} if "pos" in name else {})
        for name, f in INSIDE.items()
        if name.startswith("class_weights")
    },
}


def test_every_public_function_is_called():
    # Those of multitask take trees and functions, and lower in a test of their own; spmd's need a mesh.
    elsewhere = {f for name, f in INSIDE.items() if name.startswith(("multitask", "spmd"))}
    elsewhere |= {PUBLIC[name] for name in AROUND | {"chunked"}}  # which return functions, or look at one
    assert {function for function, _, _ in CALLS.values()} == set(DOCUMENTED.values()) - elsewhere


@pytest.mark.without_x64
@pytest.mark.parametrize("name", CALLS)
def test_lowers_for_every_platform(name):
    function, arrays, options = CALLS[name]
    moving = {n: a for n, a in arrays.items() if jnp.issubdtype(a.dtype, jnp.floating)}

    def total(moving, arrays):
        results = jax.tree.leaves(function(**{**arrays, **moving}, **options))
        return sum(jnp.sum(a) for a in results)

    def value_and_gradient(moving, arrays):
        return jax.value_and_grad(total)(moving, arrays)

    # Pallas lowers for one platform at a time, and what it gives may change with the version of JAX.
    kernels = (export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton"),)
    several = ("cpu", "cuda", "tpu")
    for platforms in [(p,) for p in several] if function in WITH_KERNEL else [several]:
        exported = export.export(jax.jit(value_and_gradient), platforms=platforms, disabled_checks=kernels)(
            moving, arrays
        )
        assert exported.platforms == platforms
        if "cpu" in platforms:
            call = exported.call
    got, expected = (quick.jit(f)(moving, arrays) for f in (call, value_and_gradient))
    chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)
