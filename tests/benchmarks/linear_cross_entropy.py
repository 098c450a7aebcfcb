"""Cross entropy of a large vocabulary beside its peers: value and gradients, in one process.

    python tests/benchmarks/linear_cross_entropy.py [linear] [logits] [--rounds 7] [--only NAME ...]

On a CPU: the last matmul and the loss at N=2048, H=512, V=32000 in float32, and cross entropy from logits. On a CUDA
GPU: both in bfloat16 at the sizes of language models. Peers that are not installed are left out: torch, optax, tokamax,
and on a GPU liger-kernel and cut-cross-entropy.

Calls are interleaved in changing order; a figure is the median and its ratio to ours. Beside the time that passes
stands the time that the process computes, all cores together, which others on the machine disturb less. Memory is what
a call needs besides its arguments and results: XLA's own analysis, and for torch what its allocator has at the most.
"""

import argparse
import functools
import gc
import math
import os
import random
import statistics
import sys

import harness
import jax
import jax.numpy as jnp
import numpy as np
from harness import GPU, compiled, in_torch, module

import jaxloss

LINEAR = [(8192, 4096, 131072), (16384, 2048, 32000), (1024, 4096, 151936)] if GPU else [(2048, 512, 32000)]
LOGITS = [(8192, 131072), (8192, 32000), (65536, 1000)] if GPU else [(2048, 32000)]
DTYPE = "bfloat16" if GPU else "float32"


torch, optax, tokamax = module("torch"), module("optax"), module("tokamax")
liger = module("liger_kernel.ops.fused_linear_cross_entropy") if GPU else None
liger_rows = module("liger_kernel.ops.cross_entropy") if GPU else None
cut = module("cut_cross_entropy") if GPU else None


def numbers(*shapes):
    """Drawn where they are used: on the host, those of a GPU would take minutes."""
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(key, shape, DTYPE) * scale for key, (shape, scale) in zip(keys, shapes, strict=True)]


def tensors(*arrays):
    return [torch.from_dlpack(a).requires_grad_() for a in arrays]


def linear_peers(n, h, v):
    x, w = numbers(((n, h), 1.0), ((v, h), h**-0.5))
    y = np.random.default_rng(1).integers(0, v, n)
    jx, jw, jy = x, w, jnp.asarray(y, jnp.int32)

    def ours(**options):
        return lambda: compiled(functools.partial(jaxloss.linear_cross_entropy, **options), (0, 1), jx, jw, jy)

    yield "jaxloss", ours()
    if GPU:
        yield "jaxloss, accumulator in the input's dtype", ours(accumulator_dtype=DTYPE)
    yield (
        "jaxloss, logits kept",
        lambda: compiled(lambda x, w, y: jaxloss.cross_entropy(_dot(x, w), y), (0, 1), jx, jw, jy),
    )
    if optax:
        each = optax.softmax_cross_entropy_with_integer_labels
        yield (
            "optax on float32 logits",
            lambda: compiled(lambda x, w, y: each(_dot(x, w), y).mean(), (0, 1), jx, jw, jy),
        )
    if tokamax:
        for form in ("xla", "chunked_xla"):
            loss = functools.partial(tokamax.linear_softmax_cross_entropy_loss, reduction="mean", implementation=form)
            yield f"tokamax {form}", lambda loss=loss: compiled(lambda x, w, y: loss(x, y, w), (0, 1), jx, jw.T, jy)
    if torch:
        tx, tw = tensors(x, w)
        ty = torch.from_numpy(y).to(tx.device)
        functional = torch.nn.functional

        def dense(x, w, y):
            return functional.cross_entropy((x @ w.T).float(), y)

        yield "torch, logits kept", lambda: in_torch(lambda: dense(tx, tw, ty), tx, tw)
        if hasattr(torch.nn, "LinearCrossEntropyOptions"):
            options = torch.nn.LinearCrossEntropyOptions(allow_retain_graph=False)
            yield (
                "torch, its chunks",
                lambda: in_torch(lambda: functional.linear_cross_entropy(tx, tw, ty, options=options), tx, tw),
            )
        if GPU:
            fast = torch.compile(dense)
            yield "torch.compile, logits kept", lambda: in_torch(lambda: fast(tx, tw, ty), tx, tw)
        if liger:
            apply = liger.LigerFusedLinearCrossEntropyFunction.apply
            yield "Liger", lambda: in_torch(lambda: _first(apply(tx, tw, ty)), tx, tw)
        if cut:
            yield "cut-cross-entropy", lambda: in_torch(lambda: cut.linear_cross_entropy(tx, tw, ty), tx, tw)


def _dot(x, w):
    return jax.lax.dot_general(x, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def _first(result):
    return result[0] if isinstance(result, tuple) else result


def logits_peers(n, v):
    (x,) = numbers(((n, v), 1.0))
    y = np.random.default_rng(1).integers(0, v, n)
    jx, jy = x, jnp.asarray(y, jnp.int32)
    for form in ("auto", "xla"):
        loss = functools.partial(jaxloss.cross_entropy, implementation=form)
        yield f"jaxloss {form}", lambda loss=loss: compiled(loss, 0, jx, jy)
    if optax:
        each = optax.softmax_cross_entropy_with_integer_labels
        yield "optax", lambda: compiled(lambda x, y: each(x, y).mean(), 0, jx, jy)
        yield "optax on float32", lambda: compiled(lambda x, y: each(x.astype(jnp.float32), y).mean(), 0, jx, jy)
    if torch:
        (tx,) = tensors(x)
        ty = torch.from_numpy(y).to(tx.device)

        def dense(x, y):
            return torch.nn.functional.cross_entropy(x.float(), y)

        yield "torch", lambda: in_torch(lambda: dense(tx, ty), tx)
        if GPU:
            fast = torch.compile(dense)
            yield "torch.compile", lambda: in_torch(lambda: fast(tx, ty), tx)
        if liger_rows:
            # In place: it writes the gradient over the logits, which a copy here would hide.
            apply = liger_rows.LigerCrossEntropyFunction.apply
            yield "Liger", lambda: in_torch(lambda: _first(apply(tx * 1, ty, None)), tx)


def floor(peers, sizes):
    """On a GPU, in milliseconds: three matmuls, or the logits read twice and written once."""
    if peers is linear_peers:
        n, h, v = sizes
        a, b = jnp.ones((n, h), DTYPE), jnp.ones((v, h), DTYPE)
        product = jax.jit(lambda a, b: jax.lax.dot_general(a, b, (((1,), (1,)), ((), ()))))
        return 3 * _queued(lambda: product(a, b))
    a = jnp.ones(sizes, DTYPE)
    copy = jax.jit(lambda a: a + 1)
    return 1.5 * _queued(lambda: copy(a))


def _queued(enqueue):
    jax.block_until_ready(enqueue())  # compiled
    return harness.many(enqueue, lambda: jax.block_until_ready(enqueue()))


def table(title, peers, sizes, rounds, only):
    ready, times, memory = {}, {}, {}
    for name, prepare in peers(*sizes):
        if only and not any(word in name for word in only):
            continue
        try:
            call = prepare()
            value, memory[name] = float(call.run()[0]), call.memory
        except Exception as error:
            print(f"{name}: left out, {type(error).__name__}: {str(error).splitlines()[0][:100]}", file=sys.stderr)
            continue
        ready[name], times[name] = (call, value), []
        gc.collect()
    for _ in range(rounds):
        for name in random.sample(list(ready), len(ready)):
            times[name].append(harness.once(ready[name][0]))
    ours = next(name for name in ready if name.startswith("jaxloss"))
    print(f"\n{title} {' x '.join(map(str, sizes))}, {DTYPE}, on {jax.devices()[0].device_kind}, {rounds} rounds")
    if GPU:
        print(f"floor {floor(peers, sizes):.2f} ms")
    print(f"{'':44}{'ms':>9}{'ratio':>8}{'CPU ms':>9}{'ratio':>8}{'MiB':>9}{'ratio':>8}  loss")
    medians = {
        name: [*map(statistics.median, zip(*each, strict=True)), memory[name] / 2**20] for name, each in times.items()
    }
    for name, (_, value) in ready.items():
        pairs = zip(medians[name], medians[ours], strict=True)
        print(f"{name:44}{''.join(f'{a:9.2f}{min(a / max(b, 1e-3), 9999):8.2f}' for a, b in pairs)}  {value:.6f}")
        assert math.isclose(value, ready[ours][1], rel_tol=1e-2), f"{name} computes something else"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["linear", "logits"], help="both by default")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="*", help="words, one of which a peer's name must contain")
    arguments = parser.parse_args()
    del sys.argv[1:]  # which tokamax would read as its own
    if torch and not GPU:
        torch.set_num_threads(os.cpu_count())
    for sizes in LINEAR if "linear" in arguments.parts else ():
        table("linear cross entropy, N x H x V =", linear_peers, sizes, arguments.rounds, arguments.only)
    for sizes in LOGITS if "logits" in arguments.parts else ():
        table("cross entropy from logits, N x V =", logits_peers, sizes, arguments.rounds, arguments.only)


if __name__ == "__main__":
    harness.settle()
    main()
