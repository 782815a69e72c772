"""Devices and processes of a run: meshes, where arrays lie, and what processes wait for.

One process uses all of its devices. With several, all train together and read their own part of
every batch; each evaluates its share of the images on its own devices. They share a file system:
Orbax saves from all of them, the first writes everything else.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from medadv_jax.errors import UserError

Batch = Mapping[str, Any]  # image uint8 (B, H, W, 3), label int32 (B,), index, mask float32 (B,)

_WEEK = 7 * 24 * 3600  # seconds; the others wait for the first to write the report
_SILENCE = 30  # seconds without a sign of life after which a process counts as dead


# How this process runs


def make_deterministic() -> None:
    """Restricts XLA to kernels that give the same bits each time; they are slower.

    It matters on GPUs, where atomic additions, and convolutions chosen by timing, may differ from
    run to run. Call before the process uses a device; later it has no effect.
    """
    flag = "--xla_gpu_deterministic_ops=true"
    flags = os.environ.get("XLA_FLAGS", "")
    if flag not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}".strip()


def use_own_settings() -> None:
    """Sets what a run's numbers depend on, whatever the environment has for other programs."""
    jax.config.update("jax_enable_x64", False)  # JAX_ENABLE_X64
    jax.config.update("jax_numpy_dtype_promotion", "standard")  # JAX_NUMPY_DTYPE_PROMOTION
    jax.config.update("jax_default_prng_impl", "threefry2x32")  # JAX_DEFAULT_PRNG_IMPL


def enable_compilation_cache(folder: str) -> None:
    """Keeps programs that took over 0.2 s to compile in `folder`, for later processes.

    "" leaves JAX's own settings as they are, and so does a path with ~ where no home is known.
    """
    path = os.path.expanduser(folder)
    if folder and not path.startswith("~"):
        jax.config.update("jax_compilation_cache_dir", path)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


# Several processes


def start(coordinator: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Joins the other processes; call before anything asks for a device.

    Args:
      coordinator: host:port of the first process; "": JAX detects all three, as it can on a TPU
        pod, under Slurm and under Open MPI.
      num_processes: how many there are.
      process_id: which this is, from 0.

    Raises:
      UserError: JAX cannot detect them, or the other processes do not connect.
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
            heartbeat_timeout_seconds=_SILENCE,
            shutdown_timeout_seconds=_WEEK,
        )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"--distributed: {reason}; give --coordinator=HOST:PORT, --num_processes and"
            " --process_id, the same for all but the last"
        ) from error


def is_first() -> bool:
    """Returns whether this process keeps the run directory; a single process does."""
    return jax.process_index() == 0


def wait(name: str) -> None:
    """Waits until all processes are at the point `name`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def first_before_others(name: str) -> Iterator[None]:
    """Runs the block in the first process, then in the others, which find what it has written."""
    if not is_first():
        wait(name)
    yield
    if is_first():
        wait(name)


def of_all_processes(array: np.ndarray) -> np.ndarray:
    """Returns the arrays of P processes, of one shape, along a new first axis (P, …). All call it,
    and wait for each other. Types of 64 bits lose half of them."""
    if jax.process_count() == 1:
        return array[None]
    return np.asarray(multihost_utils.process_allgather(array))


def any_process(flag: bool) -> bool:
    """Returns whether `flag` is true in any process; all call it, and wait for each other."""
    return bool(of_all_processes(np.array(flag)).any())


class SaveTogether:
    """Lets processes save after the same step, without waiting for each other at each.

    What each wants is joined over the devices by a program of its own, and read at the next call,
    when the step after it is under way.
    """

    def __init__(self, mesh: Mesh):
        self._sharding = NamedSharding(mesh, PartitionSpec("data"))
        self._any = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._pending: jax.Array | None = None

    def ask(self, wish: bool) -> bool:
        """Tells the others a wish, and returns whether any process had it at the call before: the
        same in all of them. With one process: its own, of this call."""
        if jax.process_count() == 1:
            return wish
        before = self._pending
        own = np.full(len(self._sharding.addressable_devices), wish)
        self._pending = self._any(jax.make_array_from_process_local_data(self._sharding, own))
        return before is not None and bool(before.addressable_data(0))


class Share:
    """The rows of 0 … count - 1 that this process evaluates: blocks, dealt out in turn.

    With one process these are all, and `gather` returns what it is given.

    Attributes:
      mine: positions, int, rising. An idle process has the first block, for the shapes.
      idle: whether there are fewer blocks than processes, and none for this one.
    """

    def __init__(self, count: int, block: int = 1):
        blocks = np.arange(count) // block
        owners = blocks % jax.process_count()
        self._rows = [np.flatnonzero(owners == i) for i in range(jax.process_count())]
        own = self._rows[jax.process_index()]
        self.idle = not len(own)
        self.mine = np.flatnonzero(blocks == 0) if self.idle else own

    def gather(self, array: np.ndarray, axis: int = 0) -> np.ndarray:
        """Returns the whole array, the same in every process; `array` has `mine` along `axis`."""
        if len(self._rows) == 1:
            return array
        array = np.moveaxis(array, axis, 0)
        most = max(map(len, self._rows))
        padded = np.zeros((most, *array.shape[1:]), array.dtype)
        padded[: len(array)] = array[:most]
        parts = of_all_processes(padded)
        whole = np.zeros((sum(map(len, self._rows)), *array.shape[1:]), array.dtype)
        for rows, part in zip(self._rows, parts, strict=True):
            whole[rows] = part[: len(rows)]
        return np.moveaxis(whole, 0, axis)


# Arrays on devices


def make_mesh() -> Mesh:
    """Returns all devices of all processes along one axis, `data`."""
    return along_data(jax.devices())


def make_local_mesh() -> Mesh:
    """Returns the devices of this process along one axis, `data`."""
    return along_data(jax.local_devices())


def along_data(devices: Iterable[Any]) -> Mesh:
    """Returns devices along one axis, `data`, in the order of their processes, then of their ids.

    Process p of n reads part p of every batch, so that rows lie as in a run of one process. An
    order by the network, as `jax.make_mesh` has it, mixes processes, and refuses several slices.
    """
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(ordered), ("data",), axis_types=(AxisType.Auto,))


def put_batch(mesh: Mesh, batch: Batch) -> dict[str, jax.Array]:
    """Places the arrays of a batch, split along their first axis over the devices of `mesh`.

    Where the mesh has devices of several processes, each process passes its part of the batch.
    """
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    if sharding.is_fully_addressable:
        return jax.device_put(dict(batch), sharding)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }


def make_key(mesh: Mesh, seed: int, number: int) -> jax.Array:
    """Returns key `number` of a seed on every device of `mesh`, also those of other processes."""

    def make() -> jax.Array:
        return jax.random.fold_in(jax.random.key(seed), number)

    return jax.jit(make, out_shardings=NamedSharding(mesh, PartitionSpec()))()


def to_local(mesh: Mesh, tree: Any) -> Any:
    """Returns a tree replicated over any mesh, placed on every device of this process' `mesh`."""
    sharding = NamedSharding(mesh, PartitionSpec())

    def place(array: jax.Array) -> jax.Array:
        if array.is_fully_addressable:
            return array
        return jax.device_put(array.addressable_data(0), sharding)

    return jax.tree.map(place, tree)
