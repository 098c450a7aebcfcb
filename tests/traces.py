"""Memory and arithmetic, read from the trace: a contract that needs no device."""

import math

import jax


def inner(equation):
    """The jaxprs inside an equation."""
    for value in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")):
        jaxpr = getattr(value, "jaxpr", value)
        if hasattr(jaxpr, "eqns"):
            yield jaxpr


def equations(jaxpr):
    """Every equation, however deep."""
    for equation in jaxpr.eqns:
        yield equation
        for deeper in inner(equation):
            yield from equations(deeper)


def work(jaxpr):
    """Multiplications of all matmuls. Branches are platforms, of which one is taken."""
    total = 0
    for equation in jaxpr.eqns:
        name, parts = equation.primitive.name, [work(deeper) for deeper in inner(equation)]
        repeat = equation.params["length"] if name == "scan" else 1
        total += repeat * (max(parts) if name == "cond" else sum(parts))
        if name == "dot_general":
            ((over, _), _) = equation.params["dimension_numbers"]
            contracted = math.prod(equation.invars[0].aval.shape[i] for i in over)
            total += contracted * math.prod(equation.outvars[0].aval.shape)
    return total


def cost(function, *arrays, aside=()):
    """Elements of the largest intermediate, shapes `aside` left out, and multiplications of matmuls."""
    jaxpr = jax.make_jaxpr(function)(*arrays).jaxpr
    shapes = {v.aval.shape for equation in equations(jaxpr) for v in equation.outvars}
    return max(math.prod(shape) for shape in shapes - set(aside)), work(jaxpr)


LARGE = (8192, 4096, 128256)


def large(dtype="bfloat16"):
    """Shapes of the features, the weight and the class indices of a large language model: N × H, V × H and N."""
    n, h, v = LARGE
    return [jax.ShapeDtypeStruct(s, d) for s, d in (((n, h), dtype), ((v, h), dtype), ((n,), "int32"))]
