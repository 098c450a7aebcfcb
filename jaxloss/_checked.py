"""Losses that look at the values of their arguments."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from jax.experimental import checkify

from . import _calls, _rules

P = ParamSpec("P")
R = TypeVar("R")


def checked(loss: Callable[P, R]) -> Callable[P, R]:
    r"""The same loss with `jax.experimental.checkify` looking at the values that are known only at run time.

    $$\operatorname{checked}(\ell)(x) = \ell(x) \quad \text{or an error}$$

    A class index out of range, a probability outside [0, 1], a label that is neither 1 nor -1, a length that does not
    fit, NaN and inf in an input: the error names the function, the argument, the first position and the value there.
    What a mask, `ignore_index` or a length leaves out may be anything.

    Args:
        loss: A loss of this package, or a `functools.partial` of one.

    Returns:
        A function with the loss's own signature. Outside `jax.jit` it raises at once. Inside, checks are
        checkify's: wrap the outermost function, `checkify.checkify(jax.jit(step))`, which then returns the pair of
        an error and what it returned, and call `error.throw()`. JAX refuses to compile a check that nobody has wrapped.

    Raises:
        ValueError: If `loss` is none of this package's, and, as `checkify.JaxRuntimeError`, when called with a value
            that does not fit.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> from jax.experimental import checkify
        >>> step = jax.jit(lambda logits, labels: jaxloss.checked(jaxloss.cross_entropy)(logits, labels))
        >>> error, loss = checkify.checkify(step)(jnp.zeros((2, 3)), jnp.array([2, 3]))
        >>> print(error.get().splitlines()[0])
        cross_entropy: `target` must be a class index in [0, 3), got 3 at position (1,). (`check` failed)

    Note:
        The losses themselves contain no check and cost nothing for it. Under `jax.vmap`, positions are those in one
        sample; under `jax.grad` checks run as they do without.

    References:
        https://docs.jax.dev/en/latest/debugging/checkify_guide.html
    """
    function = _calls.unwrapped(loss, (), {})[0]
    rules = _rules.of(function)
    if rules is None:
        raise ValueError(f"checked: `loss` must be a loss of this package, got {function!r}.")

    @functools.wraps(loss)
    def with_checks(*args: P.args, **kwargs: P.kwargs) -> R:
        result = loss(*args, **kwargs)  # first, since it refuses dtypes and shapes that no check expects
        function, every, named = _calls.unwrapped(loss, args, kwargs)
        for finding in _rules.findings(_calls.bind(function, rules, *every, **named)):
            _check(function.__name__, finding)
        return result

    return with_checks


def _check(name: str, finding: _rules.Finding) -> None:
    place, value = finding.first()
    position = ", ".join("{}" for _ in place) + "," * (len(place) == 1)
    message = f"{name}: `{finding.argument}` must be {finding.expected}, got {{}} at position ({position})."
    checkify.check(~finding.bad.any(), message, value, *place)
