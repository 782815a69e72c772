"""Predicts by `model.stablehlo` and `weights.npz` beside this file: pip install jax flatbuffers.

python read_stablehlo.py images.npy    # (B, S, S, 3) uint8, any B; prints probabilities (B, K)
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jax import export


def load(folder: Path) -> Callable[[np.ndarray], Sequence[jax.Array]]:
    """Returns images (B, S, S, 3) uint8 -> probabilities (B, K) and logits (B, K), float32."""
    exported = export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
    weights = jax.device_put(dict(np.load(folder / "weights.npz", allow_pickle=False)))
    call = jax.jit(exported.call)
    return lambda images: [*call(weights, images)]


if __name__ == "__main__":
    print(np.asarray(load(Path(__file__).parent)(np.load(sys.argv[1]))[0]))
