"""What the benchmarks share: all peers in one process, their calls in turn, and the memory that each needs."""

import functools
import gc
import importlib
import os
import random
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

KEPT = {
    "MALLOC_MMAP_MAX_": "0",  # pages stay, for every peer: on a CPU their faults cost more than arithmetic
    "MALLOC_ARENA_MAX": "1",  # the one arena that may grow as large as a result
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "KMP_BLOCKTIME": "0",  # torch's threads wait passively
    "OMP_WAIT_POLICY": "passive",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "KERAS_BACKEND": "jax",
    "KINETO_LOG_LEVEL": "99",  # torch's profiler, which measures memory, says much
}
GPU = jax.default_backend() == "gpu"
# Seconds between calls: threads of one peer that still spin must not slow the next. In 2 ms a core would fall asleep,
# which costs the next call up to 0.8 ms; in a training step none does.
PAUSE = 2e-4


def settle():
    """Start the process again with the settings above, which are read when it starts."""
    if any(os.environ.get(name) != value for name, value in KEPT.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEPT})


def module(name):
    """A peer, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def versions(*names):
    return {name: getattr(found, "__version__", "?") for name in names if (found := module(name))}


@dataclass(frozen=True)
class Call:
    """A call to be timed: `run` blocks and returns the value first, `enqueue` does not block. Memory is in bytes."""

    run: Any
    enqueue: Any
    memory: int
    trace: float = 0.0  # milliseconds
    compile: float = 0.0


def compiled(loss, moving, *arrays, again=0):
    """Value and, where something is `moving`, its gradients, by XLA. Compiled `again`, the fastest time counts.

    From a folder of what was compiled before, it is no time to compile, and left out.
    """
    work = jax.value_and_grad(loss, moving) if moving != () else loss
    traces, compiles = [], []
    for _ in range(1 + again):
        start = time.perf_counter()
        # A function of its own each time, or JAX would take what it has traced before.
        traced = jax.jit(functools.partial(work)).trace(*arrays)
        traces.append(time.perf_counter() - start)
        start = time.perf_counter()
        program = traced.lower().compile()
        compiles.append(time.perf_counter() - start)

    def enqueue():
        return program(*arrays)

    def run():
        result = jax.block_until_ready(enqueue())
        return result if moving != () else (result,)

    memory = program.memory_analysis().temp_size_in_bytes
    if jax.config.jax_compilation_cache_dir:
        return Call(run, enqueue, memory)
    return Call(run, enqueue, memory, min(traces) * 1e3, min(compiles) * 1e3)


def in_torch(loss, *moving):
    """A value and, where some tensors are `moving`, their gradients, by torch."""
    torch = module("torch")

    def enqueue():
        for tensor in moving:
            tensor.grad = None
        if not moving:
            with torch.no_grad():
                return loss()
        value = loss()
        value.backward()
        return value

    def run():
        value = enqueue()
        if GPU:
            torch.cuda.synchronize()
        return value.detach(), *(tensor.grad for tensor in moving)

    run()
    return Call(run, enqueue, _torch_peak(torch, run, moving))


def _torch_peak(torch, run, moving):
    """Bytes that a call has allocated at the most, its gradients aside."""
    gradients = sum(tensor.numel() * tensor.element_size() for tensor in moving)
    if GPU:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    now = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return max(0, most - gradients)


def once(call):
    """Milliseconds for a call: on a GPU of many in a queue, on a CPU also those that all cores together compute."""
    if GPU:
        return many(call.enqueue, call.run), float("nan")
    time.sleep(PAUSE)
    start, computed = time.perf_counter(), time.process_time()
    call.run()
    return (time.perf_counter() - start) * 1e3, (time.process_time() - computed) * 1e3


def many(enqueue, wait, calls=None):
    """Milliseconds for one of many calls in a queue: of three where one takes long, else of ten."""
    start = time.perf_counter()
    wait()
    calls = calls or (10 if time.perf_counter() - start < 3e-3 else 3)
    start = time.perf_counter()
    for _ in range(calls - 1):
        enqueue()
    wait()
    return (time.perf_counter() - start) / calls * 1e3


def in_turn(calls, rounds=None, seconds=1.0):
    """For each call its times, in rounds of changing order; without `rounds` as many as fit, 5 at least."""
    gc.collect()
    times = {name: [] for name in calls}
    for call in calls.values():
        call.run()
    end = time.perf_counter() + seconds * len(calls)
    turn = 0
    while turn < (rounds or 5) or (rounds is None and time.perf_counter() < end and turn < 50):
        for name in random.sample(list(calls), len(calls)):
            times[name].append(once(calls[name]))
        turn += 1
    return times


def middle(times):
    """The median of each column, and the quartiles of the first."""
    columns = [sorted(column) for column in zip(*times, strict=True)]
    low, _, high = statistics.quantiles(columns[0], n=4)
    return [statistics.median(column) for column in columns], (low, high)


@functools.cache
def copy_rate(dtype="float32"):
    """Bytes for each millisecond that a copy reads and writes, of what no cache holds."""
    a = jnp.ones(2**28 if GPU else 2**25, dtype)
    copy = jax.jit(lambda a: a + 1)
    call = Call(lambda: jax.block_until_ready(copy(a)), lambda: copy(a), 0)
    return 2 * a.nbytes / min(first for first, _ in in_turn({"copy": call}, 9)["copy"])


@functools.cache
def matmul_rate(dtype):
    """Floating-point operations for each millisecond."""
    n = 8192 if GPU else 1536
    a = jnp.ones((n, n), dtype)
    product = jax.jit(lambda a: a @ a)
    call = Call(lambda: jax.block_until_ready(product(a)), lambda: product(a), 0)
    return 2 * n**3 / min(first for first, _ in in_turn({"product": call}, 9)["product"])
