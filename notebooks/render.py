"""Execute notebooks in full, and write each .ipynb anew from its script.

python notebooks/render.py           # all of them, about nine minutes on two cores
python notebooks/render.py digits    # those that are named

It needs `pip install -e '.[render]'`, which has torch for the tour. In CI the scripts run in a shortened setting
(`tests/test_notebooks.py`); this is the command that runs them as a reader would.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
SCRIPTS = {path.stem: path for path in sorted(HERE.glob("*.py")) if path != Path(__file__)}
LIMIT = 300  # seconds that a notebook may take on two cores


def main() -> None:
    """Renders what the command line names, or all."""
    names = sys.argv[1:] or list(SCRIPTS)
    if unknown := set(names) - set(SCRIPTS):
        sys.exit(f"no such notebook: {', '.join(sorted(unknown))}; there are {', '.join(SCRIPTS)}")
    seconds = {name: render(SCRIPTS[name]) for name in names}
    for name, taken in seconds.items():
        print(f"{name:20} {taken:4.0f} s{'  too long' if taken > LIMIT else ''}")


def render(script: Path) -> float:
    """Executes one script as a notebook; the seconds that it took."""
    start = time.perf_counter()
    # A line that only Colab needs, `# %pip install`, is to stay a comment.
    options = ["--opt", "comment_magics=false", "--to", "ipynb", "--set-kernel", "python3", "--execute"]
    # A progress bar would be stored as hundreds of lines.
    environment = {**os.environ, "TQDM_DISABLE": "1"}
    subprocess.run([sys.executable, "-m", "jupytext", *options, script], env=environment, check=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
