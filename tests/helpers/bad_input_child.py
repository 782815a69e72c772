"""What runs in the process of a bad input; it is forked from one that has `bad_input_start`."""

import os
import resource
import sys
import tempfile
from collections.abc import Callable


def run_main(arguments: list[str], output: str, before: Callable[[], None] | None) -> None:
    """Runs main.py; standard output and error go to `output`.out and .err."""
    # Here, not above: this file is imported by the tests too, which keep their own networks.
    from tests.helpers.bad_input_start import cli, main

    for stream, suffix in ((1, "out"), (2, "err")):
        descriptor = os.open(f"{output}.{suffix}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, stream)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    if before:
        before()
    sys.argv = ["main.py", *arguments]
    try:
        cli.run(main.main)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def limit_files() -> None:
    """No file may grow over 16 KiB; Python ignores the signal, and gets the error."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 10, 16 << 10))
    tempfile.tempdir = None


def limit_memory() -> None:
    """The process may have 12 GiB of addresses, which is more than it uses."""
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))


def allow_any_rate() -> None:
    """Lets a learning rate pass at which the loss overflows."""
    from medadv_jax.experiment import validate

    validate.RULES["train.learning_rate"] = (lambda value: True, "")
