"""Values from Keras and torchvision, and the script that stores them: `python tests/peer_reference.py`.

It needs keras on its JAX backend, torch and torchvision; the suite needs none of them.
"""

import inspect
import json
import os
import sys
import types
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
import numpy as np
import torch
from migration import arrays, rows

GOLDEN = Path(__file__).parent / "golden_peers.json"
BOX_LOSSES = ("generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss")


def of_keras() -> dict[str, list]:
    """What the first column of docs/from_keras.md gives."""
    jax.config.update("jax_enable_x64", True)
    keras.config.set_floatx("float64")
    calls = [theirs[0] for theirs, ours in rows("from_keras.md") if ours]
    return {call: np.asarray(eval(call, {**vars(keras.losses), **arrays()})).tolist() for call in calls}


def boxes() -> np.ndarray:
    """Pairs that overlap, that do not, that touch, one inside the other, and equal ones: (8, 2, 4)."""
    pairs = [
        ([0, 0, 2, 2], [1, 0.5, 3, 2.75]),
        ([0, 0, 1, 1], [2, 3, 3.5, 4]),
        ([0.3, 0.1, 4, 3], [1, 1, 2, 2.5]),
        ([0, 0, 1, 2], [1, 0, 2, 2.5]),
        ([0.25, 0.5, 1.5, 3], [0.25, 0.5, 1.5, 3]),
        ([0, 0, 3, 0.2], [1, -1, 1.2, 2]),
        ([10, 20, 110, 95], [15, 10, 140, 90]),
        ([0, 0, 1e-3, 1e-3], [0, 0, 2e-3, 1e-3]),
    ]
    return np.array(pairs, np.float64)


def of_torchvision() -> dict[str, dict[str, list]]:
    """Unreduced losses, and their gradients for both boxes."""
    # In a torchvision built for another torch the registrations of its compiled operators fail; the losses have none.
    sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))
    import torchvision

    out = {}
    for name in BOX_LOSSES:
        pair = [torch.from_numpy(b.copy()).requires_grad_() for b in np.moveaxis(boxes(), 1, 0)]
        loss = getattr(torchvision.ops, name)(*pair)
        loss.sum().backward()
        out[name] = {"loss": loss.tolist(), "gradients": [b.grad.tolist() for b in pair]}
    out["version"] = torchvision.__version__
    return out


def main() -> None:
    """Store everything."""
    names = sorted(name for name in dir(keras.losses) if not name.startswith("_"))
    stored = {"keras": keras.__version__, "keras_names": names, "keras_values": of_keras()}
    functions = [name for name in names if inspect.isfunction(getattr(keras.losses, name))]
    stored["keras_arguments"] = {n: list(inspect.signature(getattr(keras.losses, n)).parameters) for n in functions}
    stored |= {"boxes": boxes().tolist(), "torchvision": of_torchvision()}
    GOLDEN.write_text(json.dumps(stored) + "\n")
    print(f"keras {keras.__version__} and torchvision {stored['torchvision']['version']} in {GOLDEN.name}")


if __name__ == "__main__":
    main()
