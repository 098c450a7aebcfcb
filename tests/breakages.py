"""Breaks the package on purpose, one line at a time, and checks that a test notices: `python tests/breakages.py`.

Each breakage is applied to a copy. A breakage that no test notices, or whose line is gone, is an error.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
# file, line as it is, line as it must not be, tests that should notice
BREAKAGES = [
    ("_regression.py", "jnp.square(x - t), weight", "0.5 * jnp.square(x - t), weight", "l1 or mse"),
    ("_regression.py", "u * (d - beta * u / 2)", "u * (d - beta * u)", "smooth"),
    ("_regression.py", "slope * (d - slope / 2)", "d * (d - slope / 2)", "huber"),
    (
        "_regression.py",
        "reduce(name, w * loss, reduction, keep, share=w)",
        "reduce(name, w * loss, reduction, keep)",
        "mse",
    ),
    ("_regression.py", "jnp.where(v < eps, eps + (v - lax.stop_gradient(v)), v)", "jnp.maximum(v, eps)", "gaussian"),
    ("_regression.py", "jnp.where(t > 1, stirling, 0)", "stirling", "poisson"),
    ("_binary.py", "times(1 - t, cost_of_no)", "(1 - t) * cost_of_no", "bce"),
    ("_binary.py", "jnp.maximum(p * (1 - p), FLOOR)", "(p * (1 - p))", "bce"),
    ("_binary.py", "positive = t * _check", "positive = _check", "bce"),
    ("_binary.py", "return jnp.maximum(jnp.log(p), -100), ", "return jnp.log(p), ", "bce"),
    ("_categorical.py", "(1 - smoothing) * share", "share", "ce or cross"),
    ("_categorical.py", "return jnp.where(keep & (index < 0), jnp.nan, scale)", "return scale", "range"),
    (
        "_categorical.py",
        "jnp.exp(z - log_total) - a), keep)",
        "jnp.exp(z - log_total) - a), None)",
        "masked or ignored",
    ),
    (
        "_categorical.py",
        "smoothing / x.shape[axis] * per_class",
        "smoothing / (x.shape[axis] - 1) * per_class",
        "ce or cross",
    ),
    (
        "_categorical.py",
        "times(_spoiled(index, keep, share), -_check",
        "(_spoiled(index, keep, share) * -_check",
        "nll",
    ),
    ("_categorical.py", "xlogy(t, t) - times(t, x)", "xlogy(t, t) - t * x", "kl"),
    ("_categorical.py", "_batch_size(x, keep))", "_batch_size(x, None))", "kl"),
    ("_numerics.py", "return x * lax.stop_gradient(jnp.sign(x))", "return jnp.abs(x)", "l1 or absolute"),
    ("_numerics.py", "z - jnp.where(log_total == -jnp.inf, 0, log_total)", "z - log_total", "minus_inf or infinities"),
    ("_numerics.py", "g - p * jnp.sum(g, axis, keepdims=True)", "g - p * jnp.mean(g, axis, keepdims=True)", "softmax"),
    ("_numerics.py", "hit = one_hot(index, x, axis) | (index < 0)", "hit = one_hot(index, x, axis)", "range"),
    ("_numerics.py", "top = jnp.where(jnp.isfinite(top), top, 0)", "top = top + 0", "inf"),
    ("_numerics.py", "down = jnp.where(positive, e, 1) / (1 + e)", "down = 1 - up", "bce or confident"),
    (
        "_check.py",
        "return x if keep is None else jnp.where(keep, x, jnp",
        "return x if keep is None else jnp.where(True, x, jnp",
        "masked",
    ),
    ("_check.py", "    if input.shape == target.shape:", "    if input.ndim == target.ndim:", "broadcast"),
    ("_check.py", "return x.astype(dtype)\n\n\ndef flag", "return float(x)\n\n\ndef flag", "retrace"),
    ("_check.py", "known = (t >= 0) & (t < num_classes)", "known = t < num_classes", "range"),
    ("_reduce.py", "loss = _check.masked(loss, keep)", "loss = loss", "mask"),
    ("_reduce.py", "total / jnp.where(nothing, 1, weight)", "total / weight", "nothing or weights"),
    ("_reduce.py", "weight = _denominator(loss, keep, share)", "weight = _denominator(loss, None, share)", "mask"),
    ("_reduce.py", "return lax.stop_gradient(jnp.sum(", "return (jnp.sum(", "mean_has"),
]


def noticed(package: Path, words: str) -> bool:
    """Whether a test that matches `words` fails on the package."""
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    tests = [*ROOT.glob("tests/test_[penb]*.py")]  # properties, edges, numerics, bad input
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-k", words, "-p", "no:cacheprovider", *tests]
    run = subprocess.run(command, cwd=ROOT / "tests", env=environment, capture_output=True, text=True, check=False)
    if run.returncode not in (0, 1):
        raise RuntimeError(run.stdout + run.stderr)
    return run.returncode == 1


def main() -> None:
    """Try every breakage, or those whose file is named on the command line."""
    survivors = []
    for file, line, broken, words in BREAKAGES:
        if sys.argv[1:] and file not in sys.argv[1:]:
            continue
        with tempfile.TemporaryDirectory() as folder:
            package = Path(folder) / "jaxloss"
            shutil.copytree(ROOT / "jaxloss", package)
            source = (package / file).read_text()
            if source.count(line) != 1:
                raise ValueError(f"{file}: {line!r} stands there {source.count(line)} times")
            (package / file).write_text(source.replace(line, broken))
            caught = noticed(package, words)
            print(f"{'caught' if caught else 'SURVIVED':8}  {file}: {broken.strip()}", flush=True)
            survivors += [] if caught else [line]
    sys.exit(f"{len(survivors)} not noticed" if survivors else 0)


if __name__ == "__main__":
    main()
