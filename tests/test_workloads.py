"""The table of real workloads says the same in every column, and lowers everywhere at its real sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import quick
from cases import CUSTOM_VJP
from jax import export
from workloads import WORKLOADS, in_dtype

import jaxloss

BENCHMARK = Path(__file__).parent / "benchmarks" / "losses.py"
AROUND = {"checked", "chunked", "diagnose"}  # functions of losses
# Whose rows of many classes a kernel reads on CUDA.
KERNELS = {loss.__name__ for loss in CUSTOM_VJP} | {
    *("logsumexp", "log_softmax", "softmax_focal_loss", "poly_cross_entropy", "generalized_cross_entropy"),
}


def test_every_loss_has_a_workload():
    public = {name for name in jaxloss.__all__ if callable(getattr(jaxloss, name))}
    assert {workload.loss for workload in WORKLOADS} == public - AROUND


@pytest.mark.without_x64
@pytest.mark.parametrize("workload", WORKLOADS, ids=str)
def test_ours_is_the_plain_formula_and_what_optax_has(workload):
    forms = {"plain": workload.plain} if workload.plain else {}
    if "optax" in workload.peers:
        forms["optax"] = lambda *arrays: workload.peers["optax"](optax, *arrays)
    arrays = [jnp.asarray(a) for a in workload.arrays("small").values()]
    values = quick.jit(lambda *arrays: (workload.ours(*arrays), [form(*arrays) for form in forms.values()]))(*arrays)
    ours, others = values
    assert ours.shape == ()
    for name, other in zip(forms, others, strict=True):
        np.testing.assert_allclose(other, ours, rtol=2e-5, err_msg=name)


NOT_READ = {  # as their docstrings say
    ("nll_loss", "input"),
    ("hinge_embedding_loss", "target"),
    ("cosine_embedding_loss", "target"),
    ("huber_loss", "mask"),
}


@pytest.mark.without_x64
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("workload", [w for w in WORKLOADS if not w.loss.startswith(("ctc", "linear"))], ids=str)
def test_a_nan_that_counts_reaches_the_value(workload, dtype):
    # In arrays large enough for the fast pass of a CPU, whose minima and maxima take a number for a NaN beside it. No
    # part of an odd number goes through a loop first. Short rows have loops of their own.
    shapes = {2: [(257, 129)], 3: [(65, 33, 129)], 4: [(9, 17, 33, 33)]}[len(workload.sizes["small"])]
    if "box" in workload.name:
        shapes = [(32769, 4)]
    elif workload.apart and len(shapes[0]) == 2:
        shapes.append((32769, 10))
    value = jax.jit(workload.ours)
    for shape in shapes:
        arrays = workload.draw(np.random.default_rng(0), shape)
        if "mask" in arrays:
            arrays["mask"] = np.ones_like(arrays["mask"])
        for name, a in arrays.items():
            if not np.issubdtype(a.dtype, np.floating) or (workload.loss, name) in NOT_READ:
                continue
            spoilt = a.copy()
            spoilt[tuple(n // 3 for n in a.shape)] = np.nan
            assert np.isnan(value(*in_dtype(list({**arrays, name: spoilt}.values()), dtype))), (name, shape)


OTHERWISE_ON_A_GPU = {  # those whose own files have no such test
    *("js_div", "distillation_loss", "multilabel_margin_loss", "multilabel_soft_margin_loss", "sigmoid_focal_loss"),
    *("cosine_similarity", "pairwise_distance", "triplet_margin_loss", "mean_squared_logarithmic_error", "kl_div"),
}


@pytest.mark.parametrize("workload", [w for w in WORKLOADS if w.loss in OTHERWISE_ON_A_GPU], ids=str)
def test_a_gpu_finds_the_same_in_its_way(workload, as_on_a_gpu):
    arrays = [jnp.asarray(a, "float64" if a.dtype == "float32" else a.dtype) for a in workload.arrays("small").values()]

    def found():
        return jax.jit(jax.value_and_grad(workload.ours, tuple(range(workload.moving))))(*arrays)

    here = found()
    as_on_a_gpu()
    chex.assert_trees_all_close(found(), here, rtol=1e-12, atol=1e-14)


ANY_NUMBER = {
    *("mse_loss", "hinge_loss", "binary_cross_entropy", "pairwise_distance", "nll_loss", "softmax_focal_loss"),
    *("cross_entropy image classification", "multiclass_hinge_loss"),
}


@pytest.mark.parametrize("workload", [w for w in WORKLOADS if w.name in ANY_NUMBER], ids=str)
def test_a_program_for_any_number_of_rows(workload):
    arrays = workload.arrays("cpu")
    (rows,) = export.symbolic_shape("rows")
    anyhow = [jax.ShapeDtypeStruct((rows, *a.shape[1:]), a.dtype) for a in arrays.values()]
    step = jax.jit(jax.value_and_grad(workload.ours, tuple(range(workload.moving))))
    exported = export.export(step)(*anyhow)
    for count in (1, 4):
        some = [a[:count] for a in arrays.values()]
        chex.assert_trees_all_close(exported.call(*some), step(*some), rtol=1e-6, atol=1e-7)


@pytest.mark.without_x64
@pytest.mark.parametrize("workload", [w for w in WORKLOADS if w.moving], ids=str)
def test_value_and_gradient_lower_for_every_platform_at_their_real_size(workload):
    arrays = workload.real()
    step = jax.jit(jax.value_and_grad(workload.ours, tuple(range(workload.moving))))
    kernel = export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")
    together = ("cpu", "cuda", "tpu")
    # Pallas refuses to be lowered for several platforms at once.
    for platforms in [(name,) for name in together] if workload.loss in KERNELS else [together]:
        exported = export.export(step, platforms=platforms, disabled_checks=(kernel,))(*arrays)
        value, gradients = jax.tree.unflatten(exported.out_tree, exported.out_avals)
        assert value.shape == ()
        assert [g.shape for g in gradients] == [a.shape for a in arrays[: workload.moving]]


def test_the_benchmark_runs_and_writes_what_the_docs_draw(tmp_path):
    out = tmp_path / "cpu.json"
    command = [sys.executable, BENCHMARK, "speed", "--only", "l2_loss", "--peers", "plain", "optax", "--json", out]
    environment = {**os.environ, "JAXLOSS_SIZE": "small", "XLA_FLAGS": quick.FLAGS}
    del environment["JAX_COMPILATION_CACHE_DIR"]  # with which it times no compiling
    run = subprocess.run(
        [*command, "--seconds", "0.01"], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "l2_loss f32 grad" in run.stdout
    rows = json.loads(out.read_text())["speed"]
    assert [(row["dtype"], row["gradient"]) for row in rows] == [
        (dtype, gradient) for dtype in ("float32", "bfloat16") for gradient in (False, True)
    ]
    for row in rows:
        assert set(row["peers"]) == {"jaxloss", "plain", "optax"}
        assert all(peer["ms"] > 0 and peer["compile_ms"] > 0 for peer in row["peers"].values())
        assert row["floor_ms"] > 0
