"""Decodes a data set into the cache and prints the report of the build.

    python data/prepare.py --config=configs/pneumonia_resnet.py --config.data.dir=FOLDER

A run does the same by itself if the cache is missing. A generated stand-in for ChestX-ray14, in the
layout of the public download, whose numbers say nothing about medicine:

    python data/prepare.py --stand_in=FOLDER --stand_in_images=600
"""

import json
import sys
import time
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from medadv_jax import cli
from medadv_jax.data.loader import load_dataset
from medadv_jax.data.phantoms.findings import write_chest_xray14
from medadv_jax.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[1]))  # config files import `configs.default`
_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_STAND_IN = flags.DEFINE_string("stand_in", "", "Folder to write a stand-in to.")
_IMAGES = flags.DEFINE_integer("stand_in_images", 600, "Its images.", lower_bound=1)


def main() -> None:
    """Builds the cache; raises UserError if the images are missing or unusable."""
    if _STAND_IN.value:
        write_chest_xray14(Path(_STAND_IN.value), _IMAGES.value)
        return
    if _CONFIG.value is None:
        raise UserError("--config is missing: give a config file")
    start = time.perf_counter()
    dataset = load_dataset(_CONFIG.value.data)
    seconds = time.perf_counter() - start
    print(json.dumps(dataset.report, indent=2, ensure_ascii=False))
    labels = dataset.labels.tolist()
    counts = [f"{labels.count(k)} {name}" for k, name in enumerate(dataset.strata)]
    print(
        f"{dataset.name}: {', '.join(counts)}, "
        f"{len({example.group for example in dataset.examples})} groups, {seconds:.1f} s"
    )


if __name__ == "__main__":
    cli.run(main)
