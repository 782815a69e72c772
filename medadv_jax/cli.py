"""The command line of every script: flags, one-line errors, exit codes."""

import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from absl import app, flags, logging

from medadv_jax import error_messages, interrupts
from medadv_jax.config import explain_field, flatten, load_config
from medadv_jax.errors import UserError

_DEBUG = flags.DEFINE_bool("debug", False, "Show tracebacks of errors, and what libraries log.")


def run(main: Callable[[], None]) -> None:
    """Parses the flags and runs `main`; see `guard` for the exit codes."""

    def guarded(argv: Sequence[str]) -> None:
        logging.set_verbosity(logging.INFO if _DEBUG.value else logging.WARNING)
        if not _DEBUG.value:
            _silence_libraries()
        interrupts.install()

        def action() -> None:
            if len(argv) > 1:
                raise UserError(f"{argv[1]}: not a flag; fields are set by --config.name=value")
            main()

        code = guard(action)
        sys.stdout.flush()
        sys.stderr.flush()
        if code:  # libraries' own exit takes long, and prints messages that help nobody
            interrupts.leave(code)

    app.run(guarded, flags_parser=_parse)


def _silence_libraries() -> None:
    """Silences tracebacks from threads of libraries; the user gets the error itself.

    Orbax logs one in each thread that an error passes through; TensorStore's C++ threads print
    those of results that are no longer awaited.
    """
    logging.get_absl_logger().addFilter(lambda record: "orbax" not in record.pathname)
    shown = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if threading.current_thread() is threading.main_thread():
            shown(kind, error, trace)

    ignored = sys.unraisablehook

    def unraisable(found: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            ignored(found)

    sys.excepthook, sys.unraisablehook = hook, unraisable


def guard(action: Callable[[], None]) -> int:
    """Runs `action`, prints one line if it fails, and returns the exit code.

    Returns:
      0: no error; 2: an error that the user can fix; 1: an error of the program, for which --debug
      shows the traceback; 128 + the signal's number when stopped: 130 by Ctrl-C, 143 by SIGTERM.
    """
    try:
        action()
    except UserError as error:
        return _say(error, str(error), 2)
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, interrupts.Stopped) else int(signal.SIGINT)
        where = f" in {error}" if str(error) else ""
        return _say(error, f"stopped{where}; the same command goes on from here", 128 + number)
    except Exception as error:
        known = error_messages.explain(error, None, None)
        reason = " ".join(str(error).split())[:200]
        unknown = f"{type(error).__name__}: {reason}; unexpected; --debug shows the traceback"
        return _say(error, known or unknown, 2 if known else 1)
    return 0


def _say(error: BaseException, line: str, code: int) -> int:
    if flags.FLAGS.is_parsed() and _DEBUG.value:
        traceback.print_exception(error)
    print(f"error: {line}" if code < 128 else f"\n{line}", file=sys.stderr)
    return code


def _parse(argv: list[str]) -> list[str]:
    """Parses flags; an error in them becomes one line."""
    try:
        return flags.FLAGS(argv)
    except Exception as error:  # a config file is a program: it can raise anything
        explanation = _explain(argv) or " ".join(str(error).split()) or type(error).__name__
        sys.exit(_say(error, explanation, 2))


def _explain(argv: Sequence[str]) -> str:
    """Returns what is wrong with the first wrong --config flag; "" if all are right."""
    files = [arg for arg in argv if re.match(r"--?config(=|$)", arg)]
    if not files:
        return ""
    path = files[-1].partition("=")[2]
    try:
        fields = flatten(load_config(path))
    except UserError as error:
        return str(error)
    for arg in argv:
        match = re.match(r"--?(?:no)?config\.([^=\s]+)(?:=(.*))?$", arg)
        if match:
            explanation = explain_field(match[1], match[2], fields)
            if explanation:
                return explanation
    return ""
