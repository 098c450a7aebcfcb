"""Figures of the benchmarks whose results are committed, docs/performance/*.json, drawn whenever the site is built."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from pictures import FRAME, LOSS, SLOPE, STYLE

PEERS = {
    "plain": ("o", FRAME),
    "optax": ("s", SLOPE),
    "keras": ("D", "#b0569c"),
    "torch": ("^", "#c94f4f"),
    "torch.compile": ("v", "#c94f4f"),
    "torch chunks": ("<", "#c94f4f"),
}
NONE_YET = "No figures are committed yet.\n"


def write(source: Path, target: Path) -> None:
    """One fragment of Markdown with a section for each file of results, which docs/performance.md includes."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    with mpl.rc_context(STYLE):
        sections = ["\n".join(_section(path, target)) for path in sorted(source.glob("*.json"))]
    (target / "performance.md").write_text("\n".join(sections) or NONE_YET)


def _section(path: Path, target: Path) -> Iterator[str]:
    found = json.loads(path.read_text())
    versions = ", ".join(f"{name} {version}" for name, version in found.get("versions", {}).items())
    yield f"## {_machine(found)}\n"
    yield f"`{found['command']}`, {found['date']}. With {versions}.\n"
    for dtype in sorted({row["dtype"] for row in found.get("speed", [])}, reverse=True):
        rows = [row for row in found["speed"] if row["dtype"] == dtype and row["gradient"]]
        if rows:
            name = f"{path.stem}-{dtype}.svg"
            _ratios(rows).savefig(target / name, transparent=True, metadata={"Date": None})
            alt = f"Time of each peer through that of jaxloss, value and gradient, {dtype}"
            yield _figure(name, alt, f"{alt}. To the right of 1 the peer is slower.")
    if found.get("speed"):
        yield from _slower(found["speed"])
    if found.get("dispatch"):
        yield from _dispatch(found["dispatch"])
    if found.get("growth"):
        name = f"{path.stem}-growth.svg"
        _growth(found["growth"]).savefig(target / name, transparent=True, metadata={"Date": None})
        alt = "Nanoseconds for each entry as one axis grows, value and gradient"
        yield _figure(name, alt, f"{alt}. Flat is linear cost.")
    if found.get("speed"):
        yield from _table(found["speed"])


def _slower(rows: list[dict[str, Any]]) -> Iterator[str]:
    """What is behind the fastest peer, which is a defect, and how compile time compares."""
    behind = []
    for row in rows:
        times = {name: peer["ms"] for name, peer in row["peers"].items() if name != "jaxloss"}
        if times:
            best = min(times, key=times.__getitem__)
            behind.append((row["peers"]["jaxloss"]["ms"] / times[best], best, row))
    slower = sorted((one for one in behind if one[0] > 1.05), key=lambda one: -one[0])
    yield f"In {len(behind) - len(slower)} of {len(behind)} rows jaxloss is the fastest or within 5 % of it."
    both = [row["peers"] for row in rows if "compile_ms" in row["peers"].get("plain", {})]
    compiles = [peers["jaxloss"]["compile_ms"] / peers["plain"]["compile_ms"] for peers in both]
    if compiles:
        yield (
            f"To compile it takes {median(compiles):.2f} times as long as the plain formula in the median, "
            f"{max(compiles):.1f} times at the most.\n"
        )
    if slower:
        yield "Where a peer is more than 5 % faster, which we count as a defect:\n"
        yield "| workload | dtype | gradient | fastest peer | our time through its time |"
        yield "| --- | --- | --- | --- | ---: |"
        for ratio, best, row in slower:
            gradient = "yes" if row["gradient"] else "no"
            yield f"| {row['workload']} | {row['dtype']} | {gradient} | {best} | {ratio:.2f} |"
        yield ""


def _dispatch(microseconds: dict[str, float]) -> Iterator[str]:
    times = ", ".join(f"{name} {time:.1f}" for name, time in microseconds.items())
    yield f"A compiled call of `mse_loss` with eight numbers, value and gradient, in microseconds: {times}.\n"


def _machine(found: dict[str, Any]) -> str:
    device = "A CPU" if found["device"].lower() == "cpu" else found["device"]
    return f"{device}, {found['cores']} cores" if device == "A CPU" else device


def _figure(name: str, alt: str, caption: str) -> str:
    return f"```{{figure}} plots/{name}\n:alt: {alt}\n:class: plot\n\n{caption}\n```\n"


def _ratios(rows: list[dict[str, Any]]) -> Figure:
    """A line for each workload, a mark for each peer."""
    figure = Figure(figsize=(7.2, 0.9 + 0.21 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for name, (marker, color) in PEERS.items():
        points = [
            (row["peers"][name]["ms"] / row["peers"]["jaxloss"]["ms"], y)
            for y, row in enumerate(rows)
            if name in row["peers"]
        ]
        if points:
            x, y = zip(*points, strict=True)
            axes.scatter(x, y, marker=marker, color=color, s=22, label=name, zorder=2)
    axes.axvline(1, color=LOSS, linewidth=1.6, zorder=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), [row["workload"] for row in rows], fontsize=7)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", linewidth=0.3, color=FRAME)
    axes.spines[["top", "right"]].set_visible(False)
    low, high = axes.get_xlim()
    axes.set_xticks([n * 10**e for e in range(-3, 4) for n in (1, 2, 5) if low <= n * 10**e <= high])
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter("{x:g}×")
    axes.set_xlabel("time of the peer through that of jaxloss")
    figure.legend(loc="outside upper center", ncols=len(PEERS), frameon=False, fontsize=8, handletextpad=0.1)
    return figure


def _growth(rows: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    lines: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        size = row["shape"][-1 if row["axis"] in ("C", "S") else 0]
        lines.setdefault((row["workload"], row["axis"]), []).append((size, row["ns"]))
    for number, ((workload, axis), points) in enumerate(lines.items()):
        sizes, times = zip(*points, strict=True)
        smallest = sizes[0]
        steps = [size / smallest for size in sizes]
        axes.plot(steps, times, color=f"C{number}", marker="o", markersize=3, label=f"{workload}, {axis}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("size, as a multiple of the smallest")
    axes.set_ylabel("ns for each entry")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=7)
    return figure


def _table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Milliseconds, in full."""
    named = [name for name in ("jaxloss", *PEERS) if any(name in row["peers"] for row in rows)]
    yield (
        "| workload | shape | dtype | gradient | " + " | ".join(f"{name}, ms" for name in named) + " | through floor |"
    )
    yield "| --- | --- | --- | --- |" + " ---: |" * (len(named) + 1)
    for row in rows:
        times = [f"{row['peers'][name]['ms']:.3g}" if name in row["peers"] else "" for name in named]
        shape = " × ".join(map(str, row["shape"]))
        about = f"| {row['workload']} | {shape} | {row['dtype']} | {'yes' if row['gradient'] else 'no'} | "
        floor = f"{row['peers']['jaxloss']['ms'] / row['floor_ms']:.2f}"
        yield about + " | ".join([*times, floor]).replace("|  |", "| |") + " |"
    yield ""
