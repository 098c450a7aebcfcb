"""Every test runs in double precision unless it says otherwise; the doctests of the package run without it."""

import os
import tempfile

# What is compiled is shared by the workers of one run and the processes that tests start: a quarter of its time.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    folder = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import pytest
import quick

# Nearly all of a test is compiling: without LLVM's optimiser, unless all is asked for. XLA reads this at its first use.
if os.environ.get("JAXLOSS_TESTS") != "all" and quick.FLAGS not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick.FLAGS}"

# A GPU would round the factors of a float32 matmul to ten bits.
jax.config.update("jax_default_matmul_precision", "highest")

# Scripts that pytest would import to look for doctests; those of references need torch and Keras.
collect_ignore = [
    "torch_reference.py",
    "peer_reference.py",
    "torch_rows.py",
    "breakages.py",
    "two_processes.py",
    "on_devices.py",
]


@pytest.fixture(autouse=True)
def _double_precision(request):
    with jax.enable_x64("without_x64" not in request.keywords):
        yield


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """To be called: from then on a CPU runs what is meant for CUDA."""

    def on_a_gpu(*arrays, default, **ways):
        return ways.get("cuda", default)(*arrays)

    def run():
        monkeypatch.setattr(jax.lax, "platform_dependent", on_a_gpu)
        jax.clear_caches()

    yield run
    jax.clear_caches()
