"""Compiling for tests of algebra: XLA is several times faster on small programs without its optimiser.

Compiling is most of what the suite costs: 400 ms for `jax.hessian` of a cross entropy of (4, 5), and 70 ms here.
XLA's own passes still run and only the code of each kernel is another, so that a wrong formula, rule or mask shows as
it would anyway. What speaks of rounding, of NaN and inf, of memory, or of what a user runs takes `jax.jit` or none:
float32 against its own rounding, bfloat16 live against torch, poisoned masks, jit against no jit, the edges, the
documents, the README and the notebooks. With JAXLOSS_TESTS=all it gets XLA's optimiser; else `conftest` sets FLAGS.
"""

from functools import partial

import jax
from jax.test_util import check_vjp

OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_parallel_codegen_split_count": 1,
}
if jax.__version_info__ < (0, 11, 1):  # later ones have no other emitter and refuse the option
    OPTIONS["xla_cpu_use_fusion_emitters"] = False
FLAGS = " ".join(f"--{name}={str(value).lower()}" for name, value in OPTIONS.items())
jit = partial(jax.jit, compiler_options=OPTIONS)


def check_two_derivatives(function, x, **tolerances):
    """What `check_grads(function, (x,), order=2, modes=["rev"])` checks, compiled and not operation by operation."""

    def pulled_back(x):
        value, pull = jax.vjp(function, x)
        return pull(value)[0]

    for f in (function, pulled_back):
        check_vjp(_on_host(jit(f)), partial(_vjp, jit(partial(jax.vjp, f))), (x,), **tolerances)


def _vjp(forward, x):
    value, pull = forward(x)
    return jax.device_get(value), _on_host(jit(pull))


def _on_host(function):
    """Results in NumPy: with JAX's arrays each operation of a check would be compiled too."""
    return lambda *args: jax.device_get(function(*args))
