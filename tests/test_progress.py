"""A stage says how far it is, where nobody sees a bar."""

import io
import time

import jax
import pytest
from rich.console import Console

from medadv_jax import progress as progress_module
from medadv_jax.progress import StageProgress, duration, is_compiling


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def text():
    return io.StringIO()


def stage(text, clock, done=0, **options):
    # Not entered: no thread speaks beside the test.
    console = Console(file=text, width=40)
    return StageProgress(console, "evaluate hybrid", 120, done, clock=clock, **options)


def test_share_and_time_left_are_said_after_20_seconds_of_silence(text, clock):
    progress = stage(text, clock)
    clock.now += 10
    progress.advance(30)
    progress.break_silence()
    assert text.getvalue() == ""
    clock.now += 10
    progress.break_silence()
    expected = "evaluate hybrid: 30 of 120 images (25%) after 20 s, about 60 s left\n"
    assert text.getvalue() == expected  # in one line, wider than the console
    clock.now += 19
    progress.break_silence()
    assert text.getvalue() == expected
    clock.now += 1
    progress.advance(30, "epoch 2/4")
    progress.break_silence()
    line = "evaluate hybrid: epoch 2/4, 60 of 120 images (50%) after 40 s, about 40 s left"
    assert text.getvalue().splitlines()[1:] == [line]
    clock.now += 20
    progress.advance(60)
    progress.break_silence()
    assert text.getvalue().endswith("120 of 120 images (100%) after 60 s, finishing\n")


def test_a_stage_of_an_hour_is_never_silent_for_30_seconds(text, clock):
    """Looked at every second, whatever the length of a unit."""
    progress, spoke = stage(text, clock), []
    for second in range(3600):
        clock.now += 1
        if second == 1800:
            progress.advance(60)
        before = text.tell()
        progress.break_silence()
        if text.tell() > before:
            spoke.append(second)
    assert max(b - a for a, b in zip([0, *spoke], [*spoke, 3600], strict=True)) <= 30
    lines = text.getvalue().splitlines()
    assert "time left unknown" in lines[0]
    assert "about 60 min left" in lines[-1]


def test_what_was_done_before_counts_in_the_share_and_not_in_the_speed(text, clock):
    progress = stage(text, clock, done=60)
    progress.skip(20)
    clock.now += 20
    progress.advance(20)
    progress.break_silence()
    assert "100 of 120 images (83%) after 20 s, about 20 s left" in text.getvalue()


def test_other_lines_of_the_stage_break_the_silence_too(text, clock):
    progress = stage(text, clock)
    clock.now += 19
    progress.line("epoch 1/4")
    clock.now += 19
    progress.break_silence()
    assert text.getvalue() == "evaluate hybrid: epoch 1/4\n"


def test_a_stage_ends_with_its_seconds_if_it_did_anything(text, clock):
    with stage(text, clock, unit="parts") as progress:
        clock.now += 41
        progress.advance(3)
    assert text.getvalue().splitlines()[-1] == "evaluate hybrid: 3 parts in 41 s"
    idle = io.StringIO()
    with stage(idle, clock, done=120):
        pass
    assert idle.getvalue() == ""


def test_a_stage_that_fails_does_not_say_that_it_ended(text, clock):
    progress = stage(text, clock)
    with pytest.raises(ZeroDivisionError), progress:
        progress.advance(3 // 0)
    progress = stage(text, clock)
    progress.advance(3)
    with pytest.raises(ZeroDivisionError), progress:
        progress.advance(3 // 0)
    assert text.getvalue() == ""


def test_a_single_long_unit_is_not_silent():
    """A thread speaks while the unit keeps the caller busy, and is gone after the stage."""
    text = io.StringIO()
    with StageProgress(Console(file=text), "curves base", 10, silence=0.02) as progress:
        deadline = time.monotonic() + 30
        while text.getvalue().count("\n") < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "curves base: 0 of 10 images (0%)" in text.getvalue()
    assert not progress._thread.is_alive()


def test_a_terminal_has_its_bar_and_no_lines_in_between():
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=100)
    with StageProgress(console, "train base", 10, silence=0.0) as progress:
        progress.advance(5)
        time.sleep(0.05)
    assert "5 of 10 images" not in text.getvalue()
    assert "5/10" in text.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_a_long_compilation_is_called_so(terminal, monkeypatch):
    """In lines and in the bar, for as long as it takes and no longer."""
    monkeypatch.setattr(progress_module, "_POLL", 0.01)
    text, told = io.StringIO(), []
    console = Console(file=text, force_terminal=terminal, width=100)

    def slow(x):
        for _ in range(100):
            x = jax.lax.fori_loop(0, 3, lambda i, y: jax.numpy.sin(y @ y) + i, x)
        return x

    program = jax.jit(slow).lower(jax.numpy.ones((8, 8)))
    with StageProgress(console, "train base", 10, silence=0.02) as progress:
        time.sleep(0.1)
        told.append("compiling" in text.getvalue())
        program.compile()
        progress.advance(1, "epoch 1/4")
        time.sleep(0.2)
    told.append("compiling" in text.getvalue())
    assert told == [False, True]
    assert not is_compiling()


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (99, "99 s"), (720, "12 min"), (11_100, "3 h 05 min")]
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words
