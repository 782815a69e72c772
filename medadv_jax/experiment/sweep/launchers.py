"""Starts cells through submitit: on this machine, or as jobs of Slurm."""

import contextlib
import glob
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import submitit

from medadv_jax.errors import UserError

_MEMORY_SHARE = 0.9  # of a device, for all the cells on it together
_STOP_SECONDS = 30.0  # for a run to save its state; then it is killed
_MINUTES = {"local": 366 * 24 * 60, "slurm": 24 * 60}  # that a cell may take, unless told otherwise
# What hides the other devices from a process, by vendor.
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
_PERMIT = "running"  # in the folder of one start of a sweep: its cells may run

Variables = Mapping[str, str | None]  # environment variables; None: unset


def visible_devices(environment: Mapping[str, str]) -> tuple[str, list[str]]:
    """Returns the variable that chooses among devices, and the devices it may name.

    A variable that is set limits them; else every NVIDIA device counts. No device: ("", []).
    """
    for name in _VISIBLE:
        if environment.get(name):
            return name, environment[name].split(",")
    found = len(glob.glob("/dev/nvidia[0-9]*"))
    return (_VISIBLE[0], [str(i) for i in range(found)]) if found else ("", [])


class Launcher:
    """Starts cells; they may run until `stop`, or until the next start of the sweep.

    With one slot on this machine a cell has all devices. With several each has one device, in turn;
    where cells outnumber devices they share its memory. A job of Slurm has what Slurm gives it.

    Attributes:
      slots: cells at a time.
    """

    def __init__(
        self, cluster: str, slots: int, folder: Path, options: Mapping[str, Any],
        environment: Mapping[str, str],
    ):  # fmt: skip
        """Args: "local" or "slurm"; slots, 0: one for each device; a folder for submitit's files,
        which all nodes see; parameters of submitit, such as slurm_partition; the variables of this
        process. UserError: submitit does not know a parameter, or there is no Slurm."""
        self._variable, self._devices = visible_devices(environment)
        self._is_local, self._environment = cluster == "local", environment
        self.slots = slots or (max(1, len(self._devices)) if self._is_local else 1)
        for earlier in folder.glob(f"*/{_PERMIT}"):  # of a start that was killed
            earlier.unlink(missing_ok=True)
        # Of this start alone: a name that an earlier start had would give its cells leave again.
        folder = folder.absolute() / f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**9:09}"
        try:
            self._executor = submitit.AutoExecutor(folder, cluster)
            self._executor.update_parameters(**{"timeout_min": _MINUTES[cluster], **options})
        except (RuntimeError, NameError, TypeError, ValueError, AssertionError) as error:
            said = str(error).splitlines()[0]
            raise UserError(f"--launcher={cluster}, --slurm={dict(options)}: {said}") from error
        folder.mkdir(parents=True, exist_ok=True)
        self._permit = folder / _PERMIT
        self._permit.touch()

    def variables(self, slot: int) -> dict[str, str | None]:
        """Returns the environment variables that a cell does not take from its job."""
        own: dict[str, str | None] = {"PYTHONUNBUFFERED": "1"}  # the display reads the logs
        if self._is_local:  # submitit would hide the devices
            own |= {name: self._environment.get(name) for name in _VISIBLE}
        if self._is_local and self.slots > 1 and self._devices:
            own[self._variable] = self._devices[slot % len(self._devices)]
            neighbours = -(-self.slots // len(self._devices))
            fraction = "XLA_PYTHON_CLIENT_MEM_FRACTION"
            if neighbours > 1 and fraction not in self._environment:
                own[fraction] = f"{_MEMORY_SHARE / neighbours:.2f}"
        return own

    def start(self, arguments: Sequence[str], log: Path, slot: int) -> submitit.Job[int]:
        """Starts `python arguments…`, both outputs appended to `log`.

        `slot` is a number below `slots` that no other running cell has.
        """
        command = [sys.executable, *arguments]
        sweep = os.getpid() if self._is_local else 0
        # Ctrl-C reaches all processes of a terminal, and would end submitit's before the cell has
        # saved its state. Blocked signals are inherited.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return self._executor.submit(
                run_permitted, command, self.variables(slot), log.absolute(), self._permit, sweep
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def stop(self, jobs: Sequence[submitit.Job[int]]) -> None:
        """Tells the cells to save their state and leave, and waits for them."""
        self._permit.unlink(missing_ok=True)
        for job in () if self._is_local else jobs:
            job.cancel(check=False)
        end = time.monotonic() + _STOP_SECONDS + 5
        while not all(job.done() for job in jobs) and time.monotonic() < end:
            time.sleep(0.1)


def outcome(job: submitit.Job[int]) -> int | str | None:
    """Returns None while a job runs; then its exit code, negative for a signal, or a reason."""
    if not job.done():
        return None
    error = job.exception()  # it was lost, cancelled, or over its time
    if error is None:
        return job.result()
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"job {job.job_id} ({job.state}): {lines[-1] if lines else type(error).__name__}"


def run_permitted(
    command: Sequence[str], variables: Variables, log: Path, permit: Path, sweep: int = 0
) -> int:
    """Runs a command as long as it is permitted; returns its exit code, negative for a signal.

    Args:
      command: a run, which saves its state when it is sent SIGTERM.
      variables: what its environment has other than that of this process.
      log: a file, to which both outputs are appended.
      permit: a file; the command ends when it is removed.
      sweep: a process of this machine; the command ends when it does. 0: none.
    """
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: asked.set())
    environment = {k: v for k, v in {**os.environ, **variables}.items() if v is not None}
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            env=environment, start_new_session=True,  # signals to a whole group do not reach it
        )  # fmt: skip
    try:
        while process.poll() is None and not asked.is_set() and permit.exists():
            if sweep and not _is_alive(sweep):
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
    finally:  # submitit raises an exception here when the time of a job is over
        process.terminate()  # once: a second signal would end a run before it has saved
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
