"""Runs a whole tiny config on whatever devices there are; run by test_processes.py.

python tests/helpers/run_worker.py WORKDIR CACHE [--epochs=2] [--defenses=base,adversarial]
    [--coordinator=HOST:PORT --num_processes=N --process_id=I]
"""

import sys
from pathlib import Path

from absl import flags

from medadv_jax import cli, distributed, interrupts, models
from medadv_jax.experiment.run import run
from tests.helpers.tiny import TinyNet, tiny_config

_EPOCHS = flags.DEFINE_integer("epochs", 2, "Of base and adversarial.")
_DEFENSES = flags.DEFINE_string("defenses", "base,adversarial,autoencoder", "Of the config.")
_COORDINATOR = flags.DEFINE_string("coordinator", "", "host:port of the first process.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 0, "How many.")
_PROCESS_ID = flags.DEFINE_integer("process_id", -1, "Which.")


def main(paths: list[Path]) -> None:
    """Runs; the exit code is that of main.py."""
    workdir, cache = paths
    models.MODELS["resnet50"] = TinyNet
    if _COORDINATOR.value:
        distributed.start(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        interrupts.install()
    config = tiny_config()
    config.defenses, config.train.epochs = _DEFENSES.value, _EPOCHS.value
    config.train.batch_size, config.data.cache_dir = 32, str(cache)
    config.purifier.name, config.purifier.width = "spatial", 0.25
    config.eval.threshold = "youden"
    config.eval.checks = config.detector.run = "autoencoder" in config.defenses
    run(config, workdir)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    cli.run_on_paths(main)
