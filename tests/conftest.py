"""Every test runs in double precision unless it says otherwise; the doctests of the package run without it.

Nothing here changes how XLA compiles: tests of algebra ask for quick compiling themselves, see `quick`.
"""

import os

# Eight devices on a CPU, for test_devices; all else runs on the first. Read when JAX starts.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import pytest

# Scripts that pytest would import to look for doctests; those of references need torch and Keras.
collect_ignore = ["torch_reference.py", "peer_reference.py", "breakages.py", "two_processes.py"]


@pytest.fixture(autouse=True)
def _double_precision(request):
    with jax.enable_x64("without_x64" not in request.keywords):
        yield
