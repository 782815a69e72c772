"""`networks.json`: which trained networks the records of a run are of, by the SHA-256 of each.

A checkpoint that is deleted or trained anew gives another network. Its records are removed then,
so that no run mixes predictions of one network with pictures or checks of another.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from medadv_jax.evaluation.predictions import read_table, write_table
from medadv_jax.evaluation.record_names import ELSEWHERE, LABEL_PREDICTIONS, LABEL_RESULTS
from medadv_jax.evaluation.saved_images import ATTACKED_IMAGES
from medadv_jax.evaluation.universal_perturbation import PERTURBATIONS, remove_perturbations
from medadv_jax.files import read_json, write_json

NETWORKS = "networks.json"
_TABLES = (
    "predictions.parquet", "curves.parquet", "certificates.parquet", "calibration.parquet",
    "interpretability.parquet",
)  # fmt: skip
_OF_ALL = (
    "results.csv", "per_class.csv", "confusion.json", "pictures.npz", "self_checks.json",
    "detection.parquet", "detection.csv", "thresholds.json", "uncertainty.csv",
    "saliency_maps.npz", ELSEWHERE,
    LABEL_PREDICTIONS, LABEL_RESULTS,
)  # fmt: skip


def read_networks(workdir: Path) -> dict[str, str]:
    """Returns defence -> SHA-256 of the network that its records are of; {}: of an earlier version.

    Raises:
      UserError: the file is damaged.
    """
    path = workdir / NETWORKS
    return read_json(path, read=lambda found: dict(found.items())) if path.exists() else {}


def remove_stale(workdir: Path, networks: Mapping[str, str]) -> list[str]:
    """Removes the records of networks that are no longer there.

    Without an earlier `networks.json`, the records are taken to be of today's networks. Attacks
    on other defences start from `base`, so without it none of their records is kept.

    Args:
      workdir: the run directory.
      networks: defence -> SHA-256 of its trained network now.

    Returns:
      The defences whose network is another.

    Raises:
      UserError: a record is damaged; nothing is removed then.
    """
    before = read_networks(workdir)
    changed = [name for name, now in networks.items() if before.get(name, now) != now]
    if changed:
        _remove(workdir, list(networks) if "base" in changed else changed)
    if before != networks:
        write_json(workdir / NETWORKS, dict(networks))
    return changed


def _remove(workdir: Path, defenses: list[str]) -> None:
    """Removes rows of these defences, and the records that are of all defences together."""
    tables: dict[Path, pa.Table] = {}
    for name in _TABLES:
        if (workdir / name).exists():
            table = read_table(workdir / name)
            kept = ~np.isin(table["defense"].to_numpy(zero_copy_only=False), defenses)
            tables[workdir / name] = table.filter(pa.array(kept))
    remove_perturbations(workdir / PERTURBATIONS, defenses)
    for name in defenses:
        shutil.rmtree(workdir / ATTACKED_IMAGES / name, ignore_errors=True)
    for name in _OF_ALL:
        (workdir / name).unlink(missing_ok=True)
    for path, table in tables.items():
        write_table(path, table)
