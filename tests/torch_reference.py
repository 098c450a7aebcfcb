"""Values and gradients of the grid from torch, and the script that stores them: `python tests/torch_reference.py`."""

import json
import warnings
from pathlib import Path

import numpy as np
import torch
from torch_grid import Entry, grid

GOLDEN = Path(__file__).parent / "golden.npz"


def run(entry: Entry, dtype: torch.dtype = torch.float64) -> dict[str, np.ndarray]:
    """`value/<reduction>` and `gradient/<reduction>/<argument>`, in float64."""
    results = {}
    for reduction in entry.reductions:
        tensors = {}
        for name, array in entry.arrays.items():
            tensor = torch.from_numpy(np.array(array))
            tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
            tensors[name] = tensor.requires_grad_(name in entry.moving)
        loss = getattr(torch.nn.functional, entry.loss)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # kl_div's on "mean"
            arguments = entry.call(tensors, reduction)
            if "axis" in arguments:
                arguments["dim"] = arguments.pop("axis")
            if entry.loss == "ctc_loss":
                arguments["log_probs"] = arguments["log_probs"].log_softmax(-1)
            value = loss(**arguments)
        cotangent = torch.from_numpy(np.asarray(entry.cotangent(tuple(value.shape)))).to(value.dtype)
        value.backward(cotangent)
        results[f"value/{reduction}"] = value.detach().double().numpy()
        for name in entry.moving:
            results[f"gradient/{reduction}/{name}"] = tensors[name].grad.double().numpy()
    return results


def main() -> None:
    """Store the grid, inputs included, so that no random stream has to stay the same."""
    index, numbers = {}, []
    for entry in grid():
        arrays = {f"array/{name}": a for name, a in entry.arrays.items()} | run(entry)
        about = {"loss": entry.loss, "options": entry.options, "moving": entry.moving}
        index[entry.id] = about | {"arrays": {key: [str(a.dtype), a.shape] for key, a in arrays.items()}}
        numbers += [np.asarray(a, np.float64).ravel() for a in arrays.values()]
    document = json.dumps({"torch": torch.__version__, "entries": index})
    np.savez_compressed(GOLDEN, index=np.array(document), numbers=np.concatenate(numbers))
    print(f"{len(index)} entries from torch {torch.__version__} in {GOLDEN.name}")


if __name__ == "__main__":
    main()
