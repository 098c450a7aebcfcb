"""docs/capabilities.md from signatures, rules and the tables of names: `python tests/capabilities.py` writes it."""

import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from cases import CASES, CUSTOM_VJP
from migration import DOCS, rows

from jaxloss import _rules

PAGE = DOCS / "capabilities.md"
PEERS = ("from_pytorch.md", "from_optax.md", "from_keras.md")
COLUMNS = ("loss", "weights", "class axis", "classes as", "forward mode", "`axis_name`", "chunks", "kernel")
HEAD = """# Losses and what they can

Written by `python tests/capabilities.py`, which looks at the signatures, the rules of `checked` and the pages of names;
a test compares the page with it, and tries forward mode and class probabilities on each loss.

Every loss takes `where`, and as `reduction` "mean", "sum", "none" and "sum_and_weight"{batchmean};
has first and second derivatives in reverse mode, `jit` and `vmap`; and has a rule in
[`checked`](api/debugging.md) for the values of each argument. `chunked` computes any of them that is a loss over
samples a few samples at a time; "chunks" below are those that a loss makes itself. Forward mode of `"autodiff"` needs
`implementation="autodiff"`.
"""


class Row(NamedTuple):
    """What one loss can."""

    weights: str
    class_axis: str
    classes_as: str
    forward_mode: str
    axis_name: str
    chunks: str
    kernel: str
    peers: tuple[str, ...]


def losses() -> dict[str, Callable[..., Any]]:
    """Every loss by name."""
    return {loss.__name__: loss for loss in sorted({case.loss for case in CASES}, key=lambda loss: loss.__name__)}


def classes_as(name: str) -> str:
    """What a loss over classes takes as target: the rule of `checked` says it."""
    rule = _rules.RULES[name].arrays.get("target")
    if rule is _rules._class_or_share:
        return "indices, probabilities"
    if rule is _rules.CLASS:
        return "indices"
    return ""


def row(name: str) -> Row:
    """From the signature, the rules and the pages of names."""
    loss = losses()[name]
    given = inspect.signature(loss).parameters
    axis = given["axis"].default if "axis" in given else 0
    return Row(
        weights=", ".join(f"`{w}`" for w in ("weight", "pos_weight", "alpha") if w in given and _weighs(name, w)),
        class_axis="1, or `axis`" if axis is None else "-1, or `axis`" if axis else "",
        classes_as=classes_as(name),
        forward_mode='`"autodiff"`' if loss in CUSTOM_VJP else "yes",
        axis_name=_yes("axis_name" in given),
        chunks=_yes("chunk_size" in given),
        kernel=_yes("implementation" in given),
        peers=tuple(_yes(name in _named_on(page)) for page in PEERS),
    )


def _weighs(name: str, argument: str) -> bool:
    """An alpha of focal losses weighs classes; others balance two terms."""
    return argument != "alpha" or "focal_loss" in name


def _yes(it_is: bool) -> str:
    return "yes" if it_is else ""


def _named_on(page: str) -> set[str]:
    return {word for _, ours in rows(page) for word in re.findall(r"\w+", ours)}


def page() -> str:
    """The whole page."""
    batchmean = [n for n, f in losses().items() if "batchmean" in str(inspect.signature(f).parameters["reduction"])]
    head = HEAD.format(batchmean="".join(f', `{name}` also "batchmean"' for name in batchmean))
    lines = ["| " + " | ".join((*COLUMNS, "in torch", "in optax", "in Keras")) + " |"]
    lines += ["| " + " | ".join(["---"] * (len(COLUMNS) + 3)) + " |"]
    for name in losses():
        *cells, peers = row(name)
        lines.append("| " + " | ".join((f"`{name}`", *cells, *peers)).replace("|  ", "| ") + " |")
    return head + "\n" + "\n".join(line.replace("|  |", "| |").replace("|  |", "| |") for line in lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"{len(losses())} losses in {PAGE.name}")
