"""The scripts in notebooks/ run as a user would run them and keep their promises."""

import re
import subprocess
import sys
from pathlib import Path

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def test_digits_reaches_97_percent_and_leaves_everything_behind(tmp_path):
    run = subprocess.run(
        [sys.executable, NOTEBOOKS / "digits.py", "--out", tmp_path],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert sum("validation loss" in line for line in lines) == 30
    assert "training" in run.stderr, "the progress bar"
    assert float(re.fullmatch(r"held-out accuracy: ([\d.]+) %", lines[-1])[1]) >= 97
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "best").is_dir()
    assert len(list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))) == 1
