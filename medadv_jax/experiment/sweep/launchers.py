"""Where cells run: on this machine, one after another or one per device; on a cluster of Slurm."""

import glob
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from medadv_jax.errors import UserError

_TIED = Path(__file__).with_name("tied.py")
_MEMORY_SHARE = 0.9  # of a device, for all the cells on it together
_STOP_SECONDS = 30.0  # for a run to save its state; then it is killed
_JOB_MINUTES = 24 * 60  # that a job of a cluster may take, unless it is told otherwise
# What hides the other devices from a process, by vendor.
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


class CellJob(Protocol):
    """A cell that runs."""

    def poll(self) -> int | str | None:
        """Returns None while it runs; then its exit code, negative for a signal, or a reason."""
        ...

    def stop(self) -> None:
        """Asks it to save its state and leave."""
        ...

    def wait(self) -> None:
        """Waits for it to leave, after `stop`."""
        ...


class Launcher(Protocol):
    """Starts cells; `slots` at a time."""

    slots: int

    def start(self, arguments: Sequence[str], log: Path, slot: int) -> CellJob:
        """Starts `python arguments…`, both outputs appended to `log`.

        Args:
          arguments: of the interpreter.
          log: a file whose folder exists.
          slot: a number below `slots` that no other running cell has.
        """
        ...


def visible_devices(environment: Mapping[str, str]) -> tuple[str, list[str]]:
    """Returns the variable that chooses among devices, and the devices it may name.

    A variable that is set limits them; else every NVIDIA device counts. No device: ("", []).
    """
    for name in _VISIBLE:
        if environment.get(name):
            return name, environment[name].split(",")
    found = len(glob.glob("/dev/nvidia[0-9]*"))
    return (_VISIBLE[0], [str(i) for i in range(found)]) if found else ("", [])


class _Process:
    def __init__(self, process: subprocess.Popen):
        self._process = process

    def poll(self) -> int | None:
        return self._process.poll()

    def stop(self) -> None:
        self._process.terminate()

    def wait(self) -> None:
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class LocalLauncher:
    """Processes of this machine.

    With one slot a cell has all devices. With several each has one device, in turn; where cells
    outnumber devices they share its memory. Without devices they share the processor.

    Attributes:
      slots: cells at a time.
    """

    def __init__(
        self, slots: int, extra: Mapping[str, str], environment: Mapping[str, str], lock: int
    ):
        """Args: slots, 0: one for each device; variables for the cells; those of this process; a
        file descriptor that they inherit, so that a lock on it lasts as long as they do."""
        variable, devices = visible_devices(environment)
        self.slots = slots or max(1, len(devices))
        self._environment = {**environment, **extra}
        self._variable, self._devices, self._lock = variable, devices, lock

    def environment(self, slot: int) -> dict[str, str]:
        """Returns the variables of a cell."""
        own = dict(self._environment)
        if self.slots > 1 and self._devices:
            own[self._variable] = self._devices[slot % len(self._devices)]
            neighbours = -(-self.slots // len(self._devices))
            if neighbours > 1:
                share = f"{_MEMORY_SHARE / neighbours:.2f}"
                own.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", share)
        return own

    def start(self, arguments: Sequence[str], log: Path, slot: int) -> CellJob:
        """See `Launcher`."""
        python = sys.executable
        with log.open("ab") as file:
            return _Process(
                subprocess.Popen(
                    [python, str(_TIED), str(os.getpid()), python, *arguments],
                    stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                    env=self.environment(slot), pass_fds=(self._lock,),
                    start_new_session=True,  # Ctrl-C reaches the sweep alone, which passes it on
                )
            )  # fmt: skip


class _ClusterJob:
    def __init__(self, job: Any):
        self._job = job

    def poll(self) -> int | str | None:
        if not self._job.done():
            return None
        # An exception is kept by submitit: a job that was lost, cancelled, or over its time.
        error = self._job.exception()
        if error is None:
            return self._job.result()
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = lines[-1] if lines else type(error).__name__
        return f"job {self._job.job_id} ({self._job.state}): {said}"

    def stop(self) -> None:
        self._job.cancel()

    def wait(self) -> None:
        """A cancelled job ends by itself."""


class ClusterLauncher:
    """Jobs of Slurm, through submitit; each asks for its own devices.

    Attributes:
      slots: jobs in the queue at a time.
    """

    def __init__(
        self, slots: int, extra: Mapping[str, str], folder: Path, options: Mapping[str, Any],
        cluster: str = "slurm",
    ):  # fmt: skip
        """Args: slots; variables for the cells; a folder that all nodes see; parameters of
        submitit, such as slurm_partition; "local" runs the jobs on this machine."""
        try:
            import submitit
        except ImportError as error:
            raise UserError(
                "--launcher=slurm: submitit is missing; pip install -e '.[slurm]'"
            ) from error
        self.slots, self._extra = slots, dict(extra)
        try:
            self._executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
            self._executor.update_parameters(**{"timeout_min": _JOB_MINUTES, **options})
        except (RuntimeError, NameError, TypeError, ValueError) as error:
            said = str(error).splitlines()[0]
            raise UserError(f"--launcher=slurm, --slurm={dict(options)}: {said}") from error

    def start(self, arguments: Sequence[str], log: Path, slot: int) -> CellJob:
        """See `Launcher`."""
        del slot
        call = [sys.executable, *map(str, arguments)]
        return _ClusterJob(self._executor.submit(run_logged, call, self._extra, str(log)))


def run_logged(call: Sequence[str], extra: Mapping[str, str], log: str) -> int:
    """Runs a command on the node where the job is; returns its exit code.

    Args:
      call: the command.
      extra: environment variables besides those of the job.
      log: a file, to which both outputs are appended.
    """
    file: IO[bytes]
    with open(log, "ab") as file:
        return subprocess.run(
            list(call), env={**os.environ, **extra}, stdout=file, stderr=subprocess.STDOUT,
            check=False,
        ).returncode  # fmt: skip
