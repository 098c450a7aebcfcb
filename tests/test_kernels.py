"""The kernels as Triton gets them: the interpreter, and an export too, take code that its compiler refuses."""

from functools import partial

import jax
import jax.numpy as jnp
import jaxlib.triton.dialect as triton
import pytest
from jaxlib.mlir import ir

import jaxloss


def _operations(operation):
    for region in operation.regions:
        for block in region.blocks:
            for inner in block.operations:
                yield inner.operation
                yield from _operations(inner.operation)


def kernels(function, *arrays):
    """The Triton code of each kernel in the program for CUDA, as bytes."""
    module = jax.jit(function).trace(*arrays).lower(lowering_platforms=("cuda",)).compiler_ir()
    for operation in _operations(module.operation):
        if operation.name == "stablehlo.custom_call" and "triton" in str(operation.attributes["call_target_name"]):
            yield operation.attributes["mhlo.backend_config"]["ir"].value_bytes


def ctc(count, length, labels, classes):
    x = jax.ShapeDtypeStruct((length, count, classes), jnp.float32)
    y, frames, sizes = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((count, labels), (count,), (count,)))
    return jax.grad(partial(jaxloss.ctc_loss_with_logits, reduction="sum")), x, y, frames, sizes


def rows(classes, dtype, **options):
    x, y = jax.ShapeDtypeStruct((4, classes), dtype), jax.ShapeDtypeStruct((4,), jnp.int32)
    return jax.grad(partial(jaxloss.cross_entropy, **options)), x, y


PROGRAMS = {
    "ctc": (ctc(2, 7, 3, 5), 1),
    "ctc of many labels and classes": (ctc(1, 300, 600, 2000), 2),
    "rows": (rows(1000, jnp.float32), 1),
    "long rows in bfloat16": (rows(32000, jnp.bfloat16), 1),
    "rows without a class": (rows(2000, jnp.float16, z_loss=1e-4, label_smoothing=0.1), 1),
}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("x64", [False, True])
def test_triton_takes_the_kernels(program, x64):
    (function, *arrays), expected = PROGRAMS[program]
    with jax.enable_x64(x64):
        found = list(kernels(function, *arrays))
    assert len(found) == expected
    for code in found:
        with ir.Context() as context:
            triton.register_dialect(context)
            context.allow_unregistered_dialects = True  # that of the barrier
            assert ir.Module.parse(code).operation.verify()
