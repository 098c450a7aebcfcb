"""Every test runs in double precision unless it says otherwise; the doctests of the package run without it."""

import jax
import pytest

# Scripts that pytest would import to look for doctests; those of references need torch and Keras.
collect_ignore = ["torch_reference.py", "peer_reference.py", "breakages.py", "two_processes.py", "on_devices.py"]


@pytest.fixture(autouse=True)
def _double_precision(request):
    with jax.enable_x64("without_x64" not in request.keywords):
        yield
