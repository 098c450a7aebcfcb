"""The rows of docs/from_pytorch.md in torch, and the script that stores them: `python tests/torch_rows.py`."""

import inspect
import json
import re
import warnings
from pathlib import Path

import numpy as np
import torch
from migration import arrays, rows

GOLDEN = Path(__file__).parent / "golden_torch_rows.json"
BUILT_IN = {  # these have no signature to inspect
    "F.cosine_similarity": ["x1", "x2", "dim", "eps"],
    "F.pairwise_distance": ["x1", "x2", "p", "eps", "keepdim"],
}


def value(call: str) -> list | float:
    """What a call of the first column gives."""
    names = {name: torch.from_numpy(np.array(a)) for name, a in arrays().items()}
    names |= {"F": torch.nn.functional, "torch": torch, "far": lambda a, b: (a - b).abs().sum(-1)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return eval(call, names).tolist()


def signatures() -> dict[str, list[str]]:
    """The arguments of every loss of torch.nn.functional, less the two that are deprecated."""
    found = dict(BUILT_IN)
    for name in dir(torch.nn.functional):
        if re.search(r"(_loss|cross_entropy|_with_logits)$|^kl_div$", name) and not name.startswith("_"):
            parameters = inspect.signature(getattr(torch.nn.functional, name)).parameters
            found[f"F.{name}"] = [p for p in parameters if p not in ("size_average", "reduce")]
    return found


def classes() -> list[str]:
    """The losses and distances of torch.nn."""
    names = [n for n in dir(torch.nn) if n.endswith("Loss") or n in ("CosineSimilarity", "PairwiseDistance")]
    return sorted(f"nn.{name}" for name in names if not name.endswith("NLLLoss2d"))


def main() -> None:
    """Store everything."""
    calls = [theirs[0] for theirs, ours in rows("from_pytorch.md") if ours]
    stored = {"torch": torch.__version__, "arguments": signatures(), "classes": classes()}
    GOLDEN.write_text(json.dumps(stored | {"values": {call: value(call) for call in calls}}) + "\n")
    print(f"{len(calls)} rows from torch {torch.__version__} in {GOLDEN.name}")


if __name__ == "__main__":
    main()
