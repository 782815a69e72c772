"""What training cost: seconds and gradient passes, from the training curves."""

from collections.abc import Iterable, Mapping
from typing import Any

from medadv_jax.config import Config
from medadv_jax.defenses import get_defense


def training_cost(
    config: Config, lines: Iterable[Mapping[str, Any]], images: int
) -> dict[str, dict[str, float]]:
    """Returns what the stages of a run cost that it trained itself.

    Args:
      config: of the run.
      lines: of metrics.jsonl.
      images: training images, an epoch's.

    Returns:
      Defence -> "epochs"; "seconds" of the steps, without compilation and validation, from the
      images per second of each epoch; "gradient_passes" of the network, summed over images.
    """
    cost: dict[str, dict[str, float]] = {}
    for line in lines:
        if "images/s" not in line:
            continue
        name = line["defense"]
        passes = get_defense(name).make_objective(config).passes
        known = cost.setdefault(name, {"epochs": 0, "seconds": 0.0, "gradient_passes": 0.0})
        known["epochs"] += 1
        known["seconds"] += images / line["images/s"]
        known["gradient_passes"] += images * passes
    return cost
