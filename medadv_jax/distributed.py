"""Several processes, one run: all train together, the first keeps the run directory and evaluates.

The processes share a file system. Each trains on its own devices and reads its own part of every
batch; Orbax saves from all of them.
"""

import contextlib
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from medadv_jax.errors import UserError

_WEEK = 7 * 24 * 3600  # seconds; the others wait for the first to evaluate


def start(coordinator: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Joins the other processes; before anything asks for a device.

    Args:
      coordinator: host:port of the first process; "": JAX finds all three out, as it can on a TPU
        pod, under Slurm and under Open MPI.
      num_processes: how many there are.
      process_id: which this is, from 0.

    Raises:
      UserError: JAX cannot find them out, or the others do not come.
    """
    given = {"num_processes": num_processes > 0, "process_id": process_id >= 0}
    missing = [name for name, is_given in given.items() if not is_given]
    if coordinator and missing:
        raise UserError(f"--coordinator={coordinator}: needs --{' and --'.join(missing)} too")
    try:
        jax.distributed.initialize(
            coordinator or None,
            num_processes or None,
            process_id if process_id >= 0 else None,
            shutdown_timeout_seconds=_WEEK,
        )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"--distributed: {reason}; give --coordinator=HOST:PORT, --num_processes and"
            " --process_id, the same for all but the last"
        ) from error


def is_first() -> bool:
    """Tells whether this process keeps the run directory; alone it does."""
    return jax.process_index() == 0


def wait(name: str) -> None:
    """Waits until all processes are at the point `name`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def first_before_others(name: str) -> Iterator[None]:
    """Runs the block in the first process, then in the others: what it leaves they find."""
    if not is_first():
        wait(name)
    yield
    if is_first():
        wait(name)
