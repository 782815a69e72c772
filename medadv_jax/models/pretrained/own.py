"""The network of a finished run, or of a model folder, as a file of weights: `model.weights=RUN`.

Of a run it is that of the undefended classifier, `models/base`; a purifier is left out.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medadv_jax.errors import UserError
from medadv_jax.files import read_json
from medadv_jax.models.pretrained.head import CLASSES
from medadv_jax.models.pretrained.match import LAYOUTS, VERSION
from medadv_jax.models.pretrained.read import RawWeights, read_weights

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"  # of a model folder


def find_model_folder(path: Path) -> Path:
    """Returns the model folder that a path means; UserError if it means none."""
    for folder in (path, path / "models" / "base"):
        if (folder / DESCRIPTION).is_file():
            return folder
    raise UserError(
        f"{path}: neither a model folder nor a run with models/base; let the run finish, or give"
        " a file of weights"
    )


def read_model_weights(folder: Path) -> RawWeights:
    """Returns the network of a model folder, with its width among the options of `create_model`.

    Raises:
      UserError: a file is missing or damaged.
    """
    raw = read_weights(folder / WEIGHTS)
    metadata = read_json(folder / DESCRIPTION, "copy the model folder again", _metadata)
    own = {k: v for k, v in raw.arrays.items() if k.startswith(("params/", "batch_stats/"))}
    return dataclasses.replace(raw, arrays=own, metadata=metadata, path=str(folder))


def _metadata(described: Mapping[str, Any]) -> dict[str, str]:
    """Returns the metadata that a converted file of the network would have."""
    network, normalization = described["network"], described["normalization"]
    fits = (name for name in LAYOUTS if normalization in LAYOUTS[name].NORMALIZATION.values())
    return {
        "arch": network["name"],
        "source": next(fits, ""),
        "options": json.dumps({**network["options"], "width": network["width"]}),
        "normalization": normalization,
        "version": VERSION,
        CLASSES: json.dumps(described["classes"]),
    }
