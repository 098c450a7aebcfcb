"""CTC beside its peers: time and accuracy, in one process.

    python tests/benchmarks/ctc.py [speed] [growth] [accuracy] [--rounds 15]

`speed`: value and gradient from logits in float32 at three sizes, on a CPU beside torch and optax, on a CUDA GPU beside
torch's own kernel and cuDNN too. `growth`: ours and the peers over S from 10 to 400 and T from 50 to 2000.
`accuracy`: the largest error of a float32 gradient against torch's in float64. Peers that are not installed are left
out.

Calls are interleaved in changing order, on a CPU each right after one of the same peer that is not timed; a figure is
the median, with its ratio to the better of torch and optax.
"""

import argparse
import os
import statistics
import time

import harness
import jax
import jax.numpy as jnp
import numpy as np
from harness import GPU, module

import jaxloss

# T, N, C, S
SPEED = (
    [(1000, 32, 32, 200), (2000, 16, 128, 250), (500, 64, 5000, 100)]  # the last takes long to draw
    if GPU
    else [(200, 16, 32, 40), (500, 16, 64, 100), (500, 8, 2000, 60)]
)
GROWTH = [(500, 16, 64, s) for s in (10, 50, 200)] + [(t, 16, 64, 20) for t in (50, 100, 200, 500, 1000, 2000)]
GROWTH += [(1000, 8, 64, 400)]
# T, N, C, S, scale of the logits; and what performance.md asks for
ACCURACY = [(1000, 4, 32, 200, 1.0, 5e-5), (1000, 4, 32, 200, 5.0, 1e-4), (2000, 4, 128, 250, 1.0, 1e-4)]


torch, optax = module("torch"), module("optax")


def drawn(length, count, classes, labels, scale=1.0):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((length, count, classes), np.float32) * np.float32(scale)
    y = rng.integers(1, classes, size=(count, labels)).astype(np.int32)
    sizes = rng.integers(labels // 2, labels + 1, size=count).astype(np.int32)
    # Room for every label and for the blank between two equal ones.
    frames = rng.integers(max(length * 3 // 4, min(2 * labels, length)), length + 1, size=count).astype(np.int32)
    frames[0], sizes[0] = length, labels
    return x, y, frames, sizes


def ours(x, y, frames, sizes):
    program = jax.jit(jax.value_and_grad(lambda x: jaxloss.ctc_loss_with_logits(x, y, frames, sizes, reduction="sum")))
    scores = jnp.asarray(x)
    return lambda: program(scores)


def by_optax(x, y, frames, sizes):
    behind = (np.arange(x.shape[0]) >= frames[:, None]).astype(np.float32)
    padding = (np.arange(y.shape[1]) >= sizes[:, None]).astype(np.float32)
    program = jax.jit(jax.value_and_grad(lambda x: optax.ctc_loss(x, behind, y, padding).sum()))
    scores = jnp.asarray(x.swapaxes(0, 1))
    return lambda: program(scores)


def by_torch(x, y, frames, sizes, dtype=None, native=True):
    device = "cuda" if GPU and dtype is None else "cpu"
    dtype = dtype or torch.float32
    leaf = torch.tensor(x, dtype=dtype, device=device, requires_grad=True)
    if native:
        targets, *lengths = (torch.tensor(a.astype(np.int64), device=device) for a in (y, frames, sizes))
    else:  # what cuDNN insists on: joined targets of int32 and lengths on the host
        targets = torch.tensor(np.concatenate([row[:size] for row, size in zip(y, sizes, strict=True)]))
        lengths = [torch.tensor(a) for a in (frames, sizes)]

    def call():
        leaf.grad = None
        with torch.backends.cudnn.flags(enabled=not native):
            value = torch.nn.functional.ctc_loss(leaf.log_softmax(-1), targets, *lengths, reduction="sum")
        value.backward()
        return value, leaf.grad

    return call


def done(result):
    """Waits until a device has computed it."""
    if GPU and torch and isinstance(result[0], torch.Tensor):
        torch.cuda.synchronize()
    return jax.block_until_ready(result)


def peers(arrays):
    calls = {"jaxloss": ours(*arrays)}
    if torch:
        calls["torch"] = by_torch(*arrays)
    if torch and GPU:
        calls["cuDNN"] = by_torch(*arrays, native=False)
    if optax:
        calls["optax"] = by_optax(*arrays)
    return calls


def medians(calls, rounds):
    """Milliseconds of each, interleaved, every other round backwards."""
    times = {name: [] for name in calls}
    ready = {
        name: harness.Call(lambda call=call: done(call()), lambda call=call: call(), 0) for name, call in calls.items()
    }
    for call in ready.values():
        call.run()
        call.run()
    for turn in range(rounds):
        for name in list(calls)[:: (-1) ** turn]:
            times[name].append(harness.once(ready[name])[0] if GPU else warm(ready[name].run))
    return {name: statistics.median(each) for name, each in times.items()}


def warm(run):
    """Milliseconds of a call right after another: what lies in the caches is its own, not of who came before."""
    time.sleep(0.01)  # threads of one that still spin must not slow the next
    run()
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def time_all(sizes, rounds):
    for size in sizes:
        result = medians(peers(drawn(*size)), rounds)
        best = min((ms for name, ms in result.items() if name != "jaxloss"), default=float("nan"))
        figures = "  ".join(f"{name} {ms:8.2f} ms" for name, ms in result.items())
        print(f"T, N, C, S = {size!s:22}  {figures}   ours / best peer {result['jaxloss'] / best:.2f}", flush=True)


def compare_gradients():
    for *size, scale, goal in ACCURACY:
        arrays = drawn(*size, scale)
        exact = by_torch(*arrays, dtype=torch.float64)()[1].numpy()
        errors = {
            name: np.abs(np.asarray(done(call())[1].cpu() if name in ("torch", "cuDNN") else call()[1]) - exact).max()
            for name, call in peers(arrays).items()
            if name != "optax"
        }
        if optax:
            errors["optax"] = np.abs(np.asarray(by_optax(*arrays)()[1]).swapaxes(0, 1) - exact).max()
        figures = "  ".join(f"{name} {error:.1e}" for name, error in errors.items())
        print(f"T, N, C, S = {tuple(size)!s:20} logits × {scale:g}:  {figures}   goal {goal:.0e}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="speed, growth, accuracy; all by default")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    parts = options.parts or ["speed", "growth", "accuracy"]
    print(jax.devices()[0].device_kind, os.cpu_count(), "cores", harness.versions("jax", "torch", "optax"))
    for part, sizes in (("speed", SPEED), ("growth", GROWTH)):
        if part in parts:
            print(f"\n{part}: value and gradient from logits, float32")
            time_all(sizes, options.rounds)
    if "accuracy" in parts and torch:
        print("\naccuracy: largest error of the float32 gradient")
        compare_gradients()


if __name__ == "__main__":
    harness.settle()
    main()
