"""Trains and attacks the classifiers of one config.

python main.py --config=configs/pneumonia_resnet.py --workdir=runs/x --config.train.epochs=5

What a run does: medadv_jax/experiment/run.py.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from medadv_jax import cli, distributed, interrupts
from medadv_jax.config import expand_path
from medadv_jax.errors import UserError
from medadv_jax.experiment.run import run

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="Path of a config file; fields are overridden by --config.name=value."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", "", 'The run directory; "": runs/<name of the config file>.'
)

_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "This is one of several processes.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", 'host:port of the first process; "": JAX finds out, where it can.'
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 0, "How many; only with --coordinator.")
_PROCESS_ID = flags.DEFINE_integer("process_id", -1, "Which, from 0; only with --coordinator.")


def main() -> None:
    """Runs the config in its workdir."""
    if _CONFIG.value is None:
        raise UserError("--config is missing: give a config file, such as configs/demo.py")
    if _DISTRIBUTED.value or _COORDINATOR.value:
        distributed.start(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        interrupts.install()
    name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    run(_CONFIG.value, expand_path(_WORKDIR.value or f"runs/{name}", "--workdir"))


if __name__ == "__main__":
    cli.run(main)
