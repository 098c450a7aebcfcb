"""The tables in docs/from_*.md as data, and the arrays on which their rows are run."""

import ast
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

DOCS = Path(__file__).parent.parent / "docs"


def _wave(*shape, start=0.0):
    """Numbers in [-2, 2] without a random stream that would have to stay the same."""
    return 2 * np.sin(start + 1.7 * np.arange(math.prod(shape)) ** 1.1).reshape(shape)


def _softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def arrays() -> dict[str, np.ndarray]:
    x, logits, units = _wave(4, 3), 2 * _wave(4, 5, start=1.0), _wave(4, 3, start=2.0)
    labels = np.array([3, 0, 1, 3])
    truth = np.eye(3)[np.array([[0, 2, 1, 1, 0, 2], [2, 2, 0, 1, 2, 2]])]
    return {
        "x": x,
        "t": _wave(4, 3, start=0.5),
        "binary": (_wave(4, 3, start=4.0) > 0).astype(float),
        "signs": np.where(_wave(4, 3, start=5.0) > 0, 1.0, -1.0),
        "chances": 1 / (1 + np.exp(-x)),
        "positive": np.abs(_wave(4, 3, start=6.0)) + 0.1,
        "counts": np.abs(_wave(4, 3, start=7.0)).round() + 0.5,
        "logits": logits,
        "labels": labels,
        "onehot": np.eye(5)[labels],
        "p": _softmax(_wave(4, 5, start=3.0)),
        "likely": _softmax(logits),
        "scores": logits + 5,
        "log_p": np.log(_softmax(logits)),
        "log_t": np.log(_softmax(_wave(4, 5, start=3.0))),
        "relevance": np.abs(_wave(4, 5, start=8.0)).round(),
        "a": _wave(4, 3, start=9.0),
        "b": _wave(4, 3, start=10.0),
        "c": _wave(4, 3, start=11.0),
        "units": units / np.sqrt((units**2).sum(-1, keepdims=True)),
        "groups": np.array([1, 2, 2, 1]),
        "pixels": _wave(2, 6, 3, start=12.0),
        "truth": truth,
        "masks": _wave(2, 6, start=13.0),
        "shape": truth[..., 1],
        "frames": _wave(2, 7, 4, start=14.0),
        "frame_paddings": np.zeros((2, 7)),
        "frame_lengths": np.array([7, 7]),
        "tokens": np.array([[1, 3, 3], [2, 1, 2]]),
        "token_paddings": np.zeros((2, 3)),
        "token_lengths": np.array([3, 3]),
        "keep": _wave(4, 5, start=15.0) > -1,
        "shown": np.where(_wave(4, 5, start=15.0) > -1, _softmax(_wave(4, 5, start=3.0)), 0.0),
        "missing": np.array([3, -100, 1, 3]),
        "entries": np.abs(_wave(4, 3, start=16.0)) + 0.2,
        "w": np.abs(_wave(5, start=17.0)) + 0.2,
        "images": _wave(2, 5, 6, start=18.0),
        "segments": np.array([[0, 4, 1, 1, 3, 2], [2, 2, 0, 4, 1, 0]]),
        "positives": np.array([[0, 1, 0, 1, 0], [1, 0, 0, 0, 0], [0, 1, 1, 1, 1], [0, 0, 0, 0, 1]], float),
        "listed": np.array([[1, 3, -1, 0, 0], [0, -1, 2, 2, 2], [4, 2, 1, -1, 0], [-1, 0, 0, 0, 0]]),
        "sides": np.array([1, -1, -1, 1]),
        "table": _wave(5, 3, start=19.0),
        "bias": _wave(5, start=20.0),
        "log_frames": np.log(_softmax(_wave(2, 7, 4, start=14.0))).swapaxes(0, 1),
    }


def rows(page: str) -> list[tuple[list[str], str]]:
    """The first two cells of each row of a page's tables of calls: what is in backticks in the first, and ours."""
    found, ours = [], False
    for line in (DOCS / page).read_text().splitlines():
        first, second, *_ = [*(cell.strip() for cell in line.strip("|").split("|")), "", ""]
        if first in ("torch", "optax", "keras") or not line.startswith("|"):
            ours = second == "jaxloss"
        elif ours and line.startswith("| `"):
            found.append((re.findall("`(.*?)`", first), second.strip("`")))
    return found


def names(page: str) -> set[str]:
    """Every name that the first column accounts for."""
    return {call.split("(")[0] for theirs, _ in rows(page) for call in theirs}


def arguments(page: str, signatures: Mapping[str, Sequence[str]]) -> set[tuple[str, str]]:
    """Every pair of a function and one of its arguments that the first column shows, given all signatures."""
    return {pair for theirs, _ in rows(page) for call in theirs for pair in _in_call(call, signatures)}


def _in_call(call: str, signatures: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str]]:
    """A row without a counterpart has `name(argument=…)`, which is no code."""
    for node in ast.walk(ast.parse(call.replace("…", "..."))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            yield from ((name, argument) for argument in signatures.get(name, ())[: len(node.args)])
            yield from ((name, keyword.arg or "") for keyword in node.keywords)
