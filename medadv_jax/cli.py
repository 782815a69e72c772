"""The command line of every script: flags, one-line errors, exit codes."""

import codecs
import inspect
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

if "--debug" not in sys.argv:  # before JAX: XLA's alarms, of slow compilation, are no errors
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, flags, logging

from medadv_jax import error_messages, interrupts
from medadv_jax.config import describe_fields, expand_path, explain_field, flatten, load_config
from medadv_jax.errors import UserError

_DEBUG = flags.DEFINE_bool("debug", False, "Show tracebacks of errors, and what libraries log.")

DEFAULTS = Path(__file__).parents[1] / "configs" / "default.py"
_PLAIN = {"×": "x", "–": "-", "−": "-", "…": "...", "±": "+/-", "ε": "epsilon", "≥": ">=",
          "≤": "<=", "·": ".", "→": "->", "∞": "inf", "²": "2", "≈": "about "}  # fmt: skip


def run(main: Callable[[], None]) -> None:
    """Parses the flags and runs `main`; see `guard` for the exit codes."""
    _run(main, takes_paths=False)


def run_on_paths(main: Callable[[list[Path]], None]) -> None:
    """Like `run`, for a script whose arguments that are no flags are paths."""
    _run(main, takes_paths=True)


def _run(main: Callable[..., None], *, takes_paths: bool) -> None:
    print_in_any_encoding()

    def guarded(argv: Sequence[str]) -> None:
        logging.set_verbosity(logging.INFO if _DEBUG.value else logging.WARNING)
        if not _DEBUG.value:
            _silence_libraries()
        interrupts.install()

        def action() -> None:
            if takes_paths:
                main([expand_path(argument, "path") for argument in argv[1:]])
                return
            if len(argv) > 1:
                raise UserError(f"{argv[1]}: not a flag; fields are set by --config.name=value")
            main()

        code = guard(action)
        sys.stdout.flush()
        sys.stderr.flush()
        if code:  # libraries' own exit takes long, and prints messages that help nobody
            interrupts.leave(code)

    app.run(guarded, flags_parser=_parse)


def print_in_any_encoding() -> None:
    """Lets standard output and error replace what their encoding lacks, such as × in ASCII."""
    codecs.register_error("medadv_jax", _replace)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="medadv_jax")  # pyright: ignore[reportAttributeAccessIssue]


def _replace(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    plain = (_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text)
    return "".join(plain), error.end


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


def guard(action: Callable[[], object]) -> int:
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
    """Parses flags; an error in them becomes one line, and --help prints them."""
    if any(re.fullmatch(r"--?(help|helpfull|helpshort|h)", argument) for argument in argv[1:]):
        print(_help(argv))
        sys.exit(0)
    try:
        path = _config_file(argv)
        if path.startswith("~"):
            argv = [arg.replace(path, str(expand_path(path, "--config"))) for arg in argv]
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS and flags.FLAGS.config is not None:
            _ = flags.FLAGS.config.items  # only this raises the error of an unreadable file
        return rest
    except Exception as error:  # a config file is a program: it can raise anything
        explanation = _explain(argv) or " ".join(str(error).split()) or type(error).__name__
        sys.exit(_say(error, explanation, 2))


def _help(argv: Sequence[str]) -> str:
    """Returns what the script does, its flags, and the fields of --config with their comments."""
    main = sys.modules["__main__"]
    lines = [inspect.getdoc(main) or "", "", "Flags:"]
    own = [*flags.FLAGS.get_key_flags_for_module(main), *_own_flags()]
    for flag in own:
        default = "" if flag.default in (None, "", []) else f" (default: {flag.default_as_str})"
        lines.append(f"  --{flag.name}: {flag.help}{default}")
    if "config" not in flags.FLAGS:
        return "\n".join(lines)
    fields = flatten(load_config(_config_file(argv) or DEFAULTS))
    comments = describe_fields(DEFAULTS) if DEFAULTS.is_file() else {}
    lines += ["", "Fields, each set by --config.FIELD=value:"]
    for name, value in fields.items():
        lines.append(f"  {name}={value}  {comments.get(name, '')}".rstrip())
    return "\n".join(lines)


def _own_flags() -> list[Any]:
    return flags.FLAGS.get_key_flags_for_module(__name__)


def _config_file(argv: Sequence[str]) -> str:
    """Returns the path that --config gives, "" if none; as --config=PATH or --config PATH."""
    found = ""
    for argument, after in zip(argv, [*argv[1:], ""], strict=True):
        match = re.fullmatch(r"--?config(?:=(.*))?", argument)
        if match:
            found = after if match[1] is None else match[1]
    return found


def _explain(argv: Sequence[str]) -> str:
    """Returns what is wrong with the first wrong --config flag; "" if all are right."""
    if not any(re.match(r"--?config(=|$)", argument) for argument in argv):
        return ""
    path = _config_file(argv)
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
