"""What each loss would read and write on a GPU, through the least that it has to: compiled for one, without one.

    pip install -e '.[tests]' "jax-cuda12-plugin==0.10.2" "jax-cuda12-pjrt==0.10.2" nvidia-cuda-nvcc-cu12
    python tests/benchmarks/passes.py [--only WORD ...] [--dtypes float32 bfloat16] [--kernels]

The plugin compiles for the H100 described below on any machine, and XLA's program says which kernels there are and
which arrays they take and give. 1 is a loss whose arrays are read and whose gradient is written once; a loop counts as
one turn. For `jaxloss` and the plain formula, with the number of kernels that matter; `--kernels` lists those of ours.
"""

import argparse
import os
import re
from functools import partial

os.environ["JAX_PLATFORMS"] = "cpu"

import sys
from pathlib import Path

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

sys.path.insert(0, str(Path(__file__).parent.parent))
from workloads import WORKLOADS, in_dtype

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84929347584
  cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
BYTES = {"f32": 4, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "pred": 1, "s8": 1, "u8": 1, "u16": 2, "f64": 8, "s64": 8}
FREE = {"parameter", "bitcast", "get-tuple-element", "constant", "tuple", "after-all"}
LINE = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(.*)")


def device():
    described = topologies.get_topology_desc("h100", "cuda", topology="1x1x1", target_config=H100)
    return SingleDeviceSharding(described.devices[0])


def size(shape):
    """Bytes of an array, or of all in a tuple, from XLA's name for it."""
    total = 0
    for dtype, axes in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shape):
        count = 1
        for axis in filter(None, axes.split(",")):
            count *= int(axis)
        total += count * BYTES.get(dtype, 0)
    return total


def instructions(text, start):
    """Name, shape, operation, arguments and the rest of each line of a computation."""
    begin = text.index(start)
    for line in text[begin : text.index("\n}", begin)].splitlines()[1:]:
        if found := LINE.match(line):
            name, shape, operation, arguments, rest = found.groups()
            yield name, shape, operation, [a.split("%")[-1].strip() for a in arguments.split(",")], rest


def picked(text, called):
    """Which part of each argument of a fusion, by number, is read, and which of its result written.

    Less than all where it begins with a gather, or ends in a scatter, which writes into its first argument.
    """
    lines = list(instructions(text, f"\n%{called} "))
    shapes, root = {name: shape for name, shape, *_ in lines}, lines[-1]
    part, written = {root[0]: 1.0}, 1.0
    for name, shape, operation, arguments, _ in reversed(lines):
        for argument in arguments if operation != "parameter" else ():
            share = 1.0
            if operation in ("gather", "dynamic-slice") and argument == arguments[0]:
                share = size(shape) / max(1, size(shapes.get(argument, "")))
            elif operation == "scatter" and name == root[0] and argument == arguments[0]:
                share = written = size(shapes.get(arguments[-1], "")) / max(1, size(shape))
            part[argument] = max(part.get(argument, 0), min(1, share) * part.get(name, 0))
    parameters = {int(arguments[0]): name for name, _, operation, arguments, _ in lines if operation == "parameter"}
    return {number: part.get(name, 0) for number, name in parameters.items()}, written


def kernels(text):
    """Name and bytes, read and written, of whatever the program runs."""
    shapes, found = {}, {}
    for name, shape, operation, arguments, rest in instructions(text, "\nENTRY "):
        shapes[name] = shape
        if operation in FREE:
            continue
        called = re.search(r"calls=%([\w.\-]+)", rest)
        part, written = picked(text, called.group(1)) if called else ({}, 1)
        sizes = {a: part.get(number, 1) * size(shapes.get(a, "")) for number, a in enumerate(arguments)}
        found[name] = written * size(shape) + sum(sizes.values()), shape
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="words, one of which a workload's name must contain")
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--kernels", action="store_true")
    options = parser.parse_args()
    there = device()
    print(f"{'':44}{'ours':>8}{'kernels':>9}{'plain':>8}{'kernels':>9}")
    for workload in WORKLOADS:
        if options.only and not any(word in workload.name for word in options.only):
            continue
        for dtype in options.dtypes:
            for gradient in (False, True) if workload.moving else (False,):
                arrays = jax.eval_shape(partial(in_dtype, dtype=dtype), workload.real())
                line(workload, arrays, gradient, there, options.kernels)
        jax.clear_caches()


def line(workload, arrays, gradient, there, each):
    floor = max(1, workload.least(arrays, gradient))
    text = f"{workload.name} {arrays[0].dtype}{' grad' * gradient}"
    large = {}
    for form in filter(None, (workload.plain, workload.ours)):
        step = jax.value_and_grad(form, tuple(range(workload.moving))) if gradient else form
        program = jax.jit(step, in_shardings=there, out_shardings=there).lower(*arrays).compile()
        all_of = kernels(program.as_text())
        large[form] = {name: (moved / floor, shape) for name, (moved, shape) in all_of.items() if moved > floor / 200}
        large[form][""] = sum(moved for moved, _ in all_of.values()) / floor, ""
    columns = [f"{large[f][''][0]:8.2f}{len(large[f]) - 1:9}" for f in (workload.ours, workload.plain) if f]
    print(f"{text:44}{''.join(columns)}", flush=True)
    for name, (moved, shape) in large[workload.ours].items() if each else ():
        if name:
            print(f"    {moved:6.2f}  {name}  {shape[:90]}")


if __name__ == "__main__":
    main()
