"""Every public loss beside its peers, on the workloads of `tests/workloads.py`, in one process.

    pip install -e '.[benchmarks]'
    python tests/benchmarks/losses.py [speed] [dispatch] [growth] [--only WORD ...] [--passes gradient] [--json FILE]

`speed`: value, and value and gradient, in float32 and bfloat16, beside torch, torch.compile, optax, Keras on JAX and
the plain formula in jnp; time to trace and compile; memory besides arguments and results. `dispatch`: a call of eight
numbers. `growth`: what each entry costs us as N, C and T grow. Peers that are not installed are left out and named. The
same command runs on a CPU and on a GPU, where sizes are larger.

Calls are interleaved in changing order. A figure is the median, with quartiles in the file; a ratio is to ours, so that
2 is twice as slow. `ours/best` is our time through that of the best peer, `floor` our time through that of the bytes
that have to move at the rate of a copy, or of the matmuls at the rate of a large one.
"""

import argparse
import contextlib
import datetime
import functools
import json
import os
import statistics
import sys
from importlib.metadata import version as installed
from pathlib import Path

import harness
import jax
import jax.numpy as jnp
import numpy as np
from harness import GPU

import jaxloss

sys.path.insert(0, str(Path(__file__).parent.parent))
from workloads import SPEECH, WORKLOADS, in_dtype

MODULES = ("torch", "optax", "keras")
NEVER_COMPILED = ("ctc", "linear_cross_entropy")  # torch.compile calls the same kernels


def drawn(workload):
    """The arrays of a workload; on a GPU the same few rows over and over, since to draw them would take longest."""
    rows, *rest = workload.sizes[_size()]
    few = max(1, rows // 64) if GPU and workload.apart else rows
    arrays = workload.draw(np.random.default_rng(0), (few, *rest)).values()
    for a in map(jnp.asarray, arrays):
        yield jnp.tile(a, (rows // few, *[1] * (a.ndim - 1))) if len(a) == few else a


def calls_of(workload, arrays, dtype, gradient, chosen, left_out):
    """What is to be timed, by name."""
    arrays = in_dtype(arrays, dtype)
    moving = tuple(range(workload.moving)) if gradient else ()
    forms = {"jaxloss": workload.ours, "plain": workload.plain}
    for name, peer in workload.peers.items():
        if (found := harness.module(name.split()[0])) is None:
            left_out.setdefault(name.split()[0], "not installed")
        elif name.startswith("torch"):
            forms[name] = functools.partial(peer, found)
            if not workload.loss.startswith(NEVER_COMPILED):
                forms["torch.compile"] = forms[name]
        else:
            forms[name] = functools.partial(peer, found)
    ready = {}
    for name, form in forms.items():
        if form is None or (chosen and name not in chosen):
            continue
        try:
            ready[name] = _call(name, form, arrays, moving)
        except Exception as error:
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:100]}"
            left_out[f"{name}, {workload}, {dtype}{', gradient' * gradient}"] = reason
    return ready


def _call(name, form, arrays, moving):
    if not name.startswith("torch"):
        again = 2 if name in ("jaxloss", "plain") and not GPU else 0
        return harness.compiled(form, moving, *arrays, again=again)
    torch = harness.module("torch")
    tensors = [torch.from_dlpack(a) for a in arrays]
    tensors = [t if t.is_floating_point() else t.to(torch.int64) for t in tensors]
    leaves = [tensors[index].requires_grad_() for index in moving]
    if name == "torch.compile":
        torch._dynamo.reset()
        form = torch.compile(form, dynamic=False)
    return harness.in_torch(lambda: form(*tensors), *leaves)


def floor_of(workload, arrays, dtype, gradient):
    """Milliseconds without which it cannot be done."""
    moved = workload.least(jax.eval_shape(lambda arrays: in_dtype(arrays, dtype), arrays), gradient)
    flops = workload.flops(*workload.sizes[_size()]) * (3 if gradient else 1)
    return max(moved / harness.copy_rate(dtype), flops / harness.matmul_rate(dtype) if flops else 0)


def _size():
    return os.environ.get("JAXLOSS_SIZE", "gpu" if GPU else "cpu")


def measure(workload, arrays, dtype, gradient, options, left_out):
    """One row of the results."""
    calls = calls_of(workload, arrays, dtype, gradient, options.peers, left_out)
    if "jaxloss" not in calls:
        return None
    values = {name: float(call.run()[0]) for name, call in calls.items()}
    for name, value in values.items():
        ours, tolerance = values["jaxloss"], 1e-3 if dtype == "float32" else 0.1
        if not abs(value - ours) <= tolerance * abs(ours) + 1e-3:
            left_out[f"{name}, {workload}, {dtype}"] = f"computes something else: {value:.6g} and not {ours:.6g}"
            del calls[name]
    peers = {}
    for name, times in harness.in_turn(calls, seconds=options.seconds).items():
        (wall, cpu), (low, high) = harness.middle(times)
        call = calls[name]
        peers[name] = {"ms": wall, "low": low, "high": high, "cpu_ms": cpu, "bytes": call.memory}
        if call.compile:
            peers[name] |= {"trace_ms": call.trace, "compile_ms": call.compile}
    return {
        "workload": workload.name,
        "field": workload.field,
        "shape": workload.sizes[_size()],
        "dtype": dtype,
        "gradient": gradient,
        "floor_ms": floor_of(workload, arrays, dtype, gradient),
        "peers": peers,
    }


COLUMNS = ("plain", "optax", "keras", "torch", "torch.compile", "torch chunks")


def heading():
    return f"{'':44}{'ms':>9}{''.join(f'{name:>14}' for name in COLUMNS)}{'ours/best':>11}{'floor':>7}{'MiB':>8}"


def line(row):
    peers = dict(row["peers"])
    ours = peers.pop("jaxloss")
    best = min((peer["ms"] for peer in peers.values()), default=float("nan"))
    ratios = "".join(f"{peers[name]['ms'] / ours['ms']:14.2f}" if name in peers else f"{'':14}" for name in COLUMNS)
    name = f"{row['workload']} {row['dtype'][0]}{jnp.dtype(row['dtype']).itemsize * 8}{' grad' * row['gradient']}"
    return (
        f"{name:44}{ours['ms']:9.2f}{ratios}{ours['ms'] / best:11.2f}"
        f"{ours['ms'] / row['floor_ms']:7.2f}{ours['bytes'] / 2**20:8.1f}"
    )


def speed(options, left_out):
    chosen = [w for w in WORKLOADS if not options.only or any(word in w.name for word in options.only)]
    rows = []
    print(f"\nspeed: ratios to ours\n{heading()}", flush=True)
    with _bar(len(chosen)) as bar, contextlib.suppress(KeyboardInterrupt):
        for workload in chosen:
            arrays = list(drawn(workload))
            for dtype in options.dtypes:
                for gradient in [name == "gradient" for name in options.passes if workload.moving or name == "value"]:
                    bar.set_postfix_str(f"{workload}, {dtype}")
                    row = measure(workload, arrays, dtype, gradient, options, left_out)
                    if row:
                        rows.append(row)
                        bar.write(line(row), file=sys.stdout)
            bar.update()
            jax.clear_caches()
    return rows


class _Silent:
    """Stands in for a progress bar where there is none."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def write(self, text, file):
        print(text, file=file, flush=True)

    def update(self):
        pass

    set_postfix_str = update


def _bar(total):
    found = harness.module("tqdm")
    return found.tqdm(total=total, unit="loss", smoothing=0) if found else _Silent()


def dispatch(options, left_out):
    """Microseconds of a compiled call of eight numbers."""
    x, t = np.linspace(-1, 1, 8, dtype=np.float32), np.zeros(8, np.float32)
    print("\ndispatch: microseconds for mse_loss of eight numbers, value and gradient")
    found = {}
    for name, loss in (("jaxloss", jaxloss.mse_loss), ("plain", lambda x, t: jnp.mean((x - t) ** 2))):
        step = jax.jit(jax.value_and_grad(loss))
        jx, jt = jnp.asarray(x), jnp.asarray(t)
        run = functools.partial(lambda step, jx, jt: jax.block_until_ready(step(jx, jt)), step, jx, jt)
        found[name] = harness.Call(run, run, 0)
    if torch := harness.module("torch"):
        leaf, target = torch.tensor(x, requires_grad=True), torch.tensor(t)
        found["torch"] = harness.in_torch(lambda: torch.nn.functional.mse_loss(leaf, target), leaf)
    medians = {}
    for name, call in found.items():
        medians[name] = statistics.median(harness.many(call.run, call.run, 1000) for _ in range(9)) * 1e3
        print(f"{name:12}{medians[name]:8.1f}")
    return medians


def _grown():
    """A loss, the axis that grows, and its workload's arrays at each size."""
    by_name = {workload.name: workload for workload in WORKLOADS}
    scale = 8 if GPU else 1
    _, count, classes, _ = SPEECH["gpu" if GPU else "cpu"]
    plans = {
        ("mse_loss", "N"): [(n * scale, 64) for n in (2**12, 2**14, 2**16, 2**18)],
        ("cross_entropy image classification", "N"): [(n * scale, 1000) for n in (512, 2048, 8192, 32768)],
        ("cross_entropy image classification", "C"): [(1024 * scale, c) for c in (100, 1000, 10000, 100000)],
        ("linear_cross_entropy", "N"): [(n * scale, 256, 8000) for n in (256, 1024, 4096)],
        ("linear_cross_entropy", "C"): [(512 * scale, 256, c) for c in (2000, 8000, 32000)],
        ("ctc_loss_with_logits", "T"): [(t, count, classes, 20) for t in (100, 400, 1600)],
        ("ctc_loss_with_logits", "S"): [(1000, count, classes, s) for s in (10, 40, 160, 400)],
        ("supervised_contrastive_loss", "N²"): [(n * scale, 256) for n in (256, 512, 1024, 2048)],
    }
    for (name, axis), shapes in plans.items():
        yield by_name[name], axis, shapes


def growth(options, left_out):
    """Nanoseconds for each entry: flat where cost is linear."""
    print("\ngrowth: nanoseconds for each entry of the shape, value and gradient")
    rows = []
    for workload, axis, shapes in _grown():
        if options.only and not any(word in workload.name for word in options.only):
            continue
        for shape in shapes:
            arrays = [jnp.asarray(a) for a in workload.draw(np.random.default_rng(0), shape).values()]
            call = harness.compiled(workload.ours, tuple(range(workload.moving)), *arrays)
            (ms, _), _ = harness.middle(harness.in_turn({"": call}, seconds=options.seconds)[""])
            entries = float(np.prod(shape)) * (shape[0] / shape[1] if axis == "N²" else 1)
            rows.append({"workload": workload.name, "axis": axis, "shape": shape, "ms": ms, "ns": ms * 1e6 / entries})
            print(f"{workload.name:44}{axis:>3}  {shape!s:24}{ms:10.2f} ms{ms * 1e6 / entries:10.3f} ns", flush=True)
    return rows


PARTS = {"speed": speed, "dispatch": dispatch, "growth": growth}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"{', '.join(PARTS)}; all by default")
    parser.add_argument("--only", nargs="*", help="words, one of which a workload's name must contain")
    parser.add_argument("--peers", nargs="*", help="jaxloss and these alone")
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--passes", nargs="*", default=["value", "gradient"])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each call")
    parser.add_argument("--json", type=Path, help="where to put the results, added to those of other parts there")
    options = parser.parse_args(arguments)
    if options.peers is not None:
        options.peers = ["jaxloss", *options.peers]
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if torch := harness.module("torch"):
        torch.set_num_threads(os.cpu_count())
    found = {
        "command": " ".join(
            ["python", "tests/benchmarks/losses.py", *(sys.argv[1:] if arguments is None else arguments)]
        ),
        "date": datetime.date.today().isoformat(),
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "versions": {"jaxloss": installed("jaxloss"), **harness.versions("jax", "jaxlib", "numpy", *MODULES)},
        "copy_bytes_per_ms": {dtype: harness.copy_rate(dtype) for dtype in options.dtypes},
        "left_out": {name: "not installed" for name in MODULES if harness.module(name) is None},
    }
    print(found["device"], found["cores"], "cores", found["versions"], f"copy {harness.copy_rate() / 1e6:.1f} GB/s")
    for part in options.parts or PARTS:
        found[part] = PARTS[part](options, found["left_out"])
        if options.json:
            _store(options.json, found)
    for name, reason in found["left_out"].items():
        print(f"left out: {name}: {reason}")


def _store(file, found):
    """Beside what other parts, or runs of other workloads, have stored there."""
    before = json.loads(file.read_text()) if file.exists() else {}
    rows = {_key(row): row for row in [*before.get("speed", []), *found.get("speed", [])]}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**before, **found, "speed": list(rows.values())}, indent=1) + "\n")


def _key(row):
    return row["workload"], row["dtype"], row["gradient"]


if __name__ == "__main__":
    harness.settle()
    main()
