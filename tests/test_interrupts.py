"""Signals, in processes of their own that know nothing of JAX."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BEGIN = """
import hashlib, sys, time
from medadv_jax import interrupts
interrupts.install()
def begin(): print("begun", flush=True)
"""
PROGRAMS = {
    "python": "begin()\nwhile True: time.sleep(0.01)",
    # C code that lets other threads run, and does not come back for signals
    "compiled": """
def compiled(): hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)
try: begin(); compiled()
except KeyboardInterrupt: compiled()  # the signal came before the C code was reached
""",
    "deferred": """
interrupts.defer(); begin()
try:
    while True:
        time.sleep(0.3); interrupts.check('step 3')
except interrupts.Stopped as error: print(error, 'saved'); sys.exit(128 + error.number)
""",
    "stubborn": "interrupts.defer(); begin()\nwhile True: time.sleep(0.01)",
}


def start(program):
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN + PROGRAMS[program]],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout
    assert process.stdout.readline() == "begun\n"
    return process


@pytest.mark.parametrize(
    ("program", "code", "out", "line"),
    [
        ("python", None, "", "interrupts.Stopped"),
        ("compiled", 143, "", "the same command goes on"),
        ("deferred", 143, "step 3 saved\n", "stopping after this step"),
    ],
)
def test_one_signal_is_enough(program, code, out, line):
    process = start(program)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    found = process.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert code is None or process.returncode == code
    assert found[0] == out
    assert line in found[1]


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_leaves_at_once(second):
    process = start("stubborn")
    process.send_signal(signal.SIGINT)
    assert process.stderr
    assert "second signal" in process.stderr.readline() + process.stderr.readline()
    assert process.poll() is None
    process.send_signal(second)
    process.communicate(timeout=5)
    assert process.returncode == 128 + second
