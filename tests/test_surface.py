"""The public surface: names, signatures, docstrings, and that everything lowers for every platform."""

import inspect
import re

import jax
import jax.numpy as jnp
import pytest
from cases import CASES
from jax import export

import jaxloss

PUBLIC = {name: getattr(jaxloss, name) for name in dir(jaxloss) if not name.startswith("_")}
LOSSES = {name: f for name, f in PUBLIC.items() if name not in ("logsumexp", "log_softmax")}
TAIL = ("weight", "axis", "where", "reduction")
SECTIONS = ("Args", "Returns", "Raises", "Example", "References")


def test_every_name_is_a_function_of_this_package():
    assert LOSSES
    for name, function in PUBLIC.items():
        assert inspect.isfunction(function), name
        assert function.__name__ == name


def test_every_loss_stands_in_the_table_of_cases():
    assert {case.loss for case in CASES} == set(LOSSES.values())


@pytest.mark.parametrize("name", LOSSES)
def test_keyword_order(name):
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    arrays = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert len(arrays) + len(keywords) == len(parameters)
    assert arrays[:2] == ["input", "target"]
    tail = [k for k in keywords if k in TAIL]
    assert keywords[-len(tail) :] == tail == [k for k in TAIL if k in tail]
    assert {"where", "reduction"} <= set(tail)


@pytest.mark.parametrize("name", PUBLIC)
def test_docstring_has_every_section(name):
    function = PUBLIC[name]
    doc = inspect.getdoc(function)
    formula = doc.index("$$")
    found = [doc.index(f"\n{section}:\n") for section in SECTIONS]
    assert found == sorted(found)
    assert formula < found[0], "the formula comes first"
    described = re.findall(r"^    (\w+): ", doc[found[0] : found[1]], re.MULTILINE)
    assert described == list(inspect.signature(function).parameters)
    assert ">>> jaxloss." in doc[found[3] : found[4]]
    assert "https://" in doc[found[4] :]


@pytest.mark.parametrize("name", PUBLIC)
def test_lowers_for_every_platform(name):
    case = next((case for case in CASES if case.loss is PUBLIC[name]), None)
    arrays = {"input": jnp.ones((4, 5))} if case is None else case.data()
    arrays = {
        n: jnp.asarray(a, jnp.float32 if jnp.issubdtype(a.dtype, jnp.floating) else jnp.int32)
        for n, a in arrays.items()
    }
    options = {} if case is None else case.options

    def loss(x, others):
        return jnp.sum(PUBLIC[name](x, **others, **options))

    others = {n: a for n, a in arrays.items() if n != "input"}
    exported = export.export(jax.jit(jax.value_and_grad(loss)), platforms=("cpu", "cuda", "tpu"))(
        arrays["input"], others
    )
    assert exported.platforms == ("cpu", "cuda", "tpu")
    value, grad = exported.call(arrays["input"], others)
    expected, expected_grad = jax.value_and_grad(loss)(arrays["input"], others)
    assert jnp.allclose(value, expected, rtol=1e-5)
    assert jnp.allclose(grad, expected_grad, rtol=1e-5, atol=1e-6)
