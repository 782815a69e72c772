"""A run directory belongs to one config, `config.json` says which, and to one process at a time."""

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from medadv_jax.config import FIELDS_WITHOUT_RESULT, Config, flatten, read_saved_config
from medadv_jax.data.splits import SPLITS
from medadv_jax.errors import UserError
from medadv_jax.files import file_lock, remove_leftovers, sync, write_json

_PACKAGES = ("medadv_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


LOCK = ".lock"  # in a run directory; held by the process that is at work in it


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Keeps other processes out of a workdir, and removes what killed ones left half written.

    Raises:
      UserError: another process is at work in it, which the message names.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    remedy = "wait for it, or give another --workdir"
    with file_lock(workdir / LOCK, str(workdir), remedy=remedy):
        for folder in (workdir, workdir / "report"):
            remove_leftovers(folder)
        yield


def claim(workdir: Path, config: Config) -> list[str]:
    """Writes `config.json`, or checks that the workdir belongs to the same config.

    Returns:
      What a person should know: that versions or device are no longer those of the beginning.
    """
    path = workdir / "config.json"
    if path.exists():
        saved = read_saved_config(path)
        _refuse_other_config(workdir, flatten(saved["config"]), flatten(config))
        now = _about()
        changed = [name for name in ("versions", "device") if saved.get(name) != now[name]]
        return [f"{workdir} was begun with other {name}" for name in changed]
    write_json(path, {"config": config.to_dict(), **_about(), "git_commit": _git_commit()})
    return []


def _about() -> dict[str, Any]:
    device = jax.devices()[0]
    return {
        "versions": {name: metadata.version(name) for name in _PACKAGES},
        "device": f"{jax.device_count()} × {device.device_kind} ({device.platform})",
    }


def refuse_other_images(path: Path, content: dict[str, Any]) -> None:
    """Raises UserError if a run would go on with other images than it began with.

    Args:
      path: of `splits.json`, which may be missing.
      content: what it would hold now: the ids of every split.
    """
    if not path.exists():
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        sizes = [sum(len(part[name]) for name in SPLITS) for part in (before, content)]
        same = all(before[name] == content[name] for name in SPLITS)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged; delete it, and it is written again") from error
    if not same:
        raise UserError(
            f"{path}: the run began with other images or other splits ({sizes[0]} images then,"
            f" {sizes[1]} now); bring the data back, or give another --workdir"
        )


def reuse_stages(workdir: Path, config: Config) -> list[str]:
    """Copies the trained stages of `config.reuse` that this config would train just so.

    Args:
      workdir: of this run; stages that it holds are left alone.
      config: of this run; `config.reuse` is the run directory to copy from, "": none.

    Returns:
      What was copied, in words.

    Raises:
      UserError: `config.reuse` is no run, or no stage of it would come out the same.
    """
    other, taken, why = Path(config.reuse), [], ""
    if not config.reuse:
        return []
    if not (other / "config.json").is_file():
        raise UserError(f"config.reuse={config.reuse}: holds no run; give the --workdir of one")
    saved = read_saved_config(other / "config.json")
    there, here = flatten(saved["config"]), flatten(config)
    for stage, apart in IRRELEVANT_FIELDS.items():
        done, target = other / "checkpoints" / stage, workdir / "checkpoints" / stage
        names = [
            n
            for n in {**there, **here}
            if not n.startswith(apart) or n in RELEVANT_AFTER_ALL[stage]
        ]
        changed = [name for name in sorted(names) if there.get(name) != here.get(name)]
        why = why or ", ".join(changed)
        if changed or stage not in config.defenses.split(",") or not done.is_dir():
            continue
        if not target.exists():
            _copy(other, done, target)
        taken.append(f"{stage}: trained in {other} (commit {saved.get('git_commit') or 'unknown'})")
    if not taken:
        raise UserError(f"config.reuse={config.reuse}: no stage would be the same: {why} differ")
    return taken


def _copy(other: Path, done: Path, target: Path) -> None:
    """Copies a stage beside and renames; refuses a stage that changes meanwhile."""
    beside = target.with_name(f".{target.name}")
    shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed
    with contextlib.ExitStack() as stack:
        if (other / LOCK).exists():
            stack.enter_context(file_lock(other / LOCK, f"config.reuse={other}", shared=True))
        shutil.copytree(done, beside, copy_function=_copy_to_disk)
    beside.replace(target)


def _copy_to_disk(source: str, target: str) -> None:
    shutil.copyfile(source, target)
    sync(Path(target))


_ELSEWHERE = ("defenses", "reuse", *FIELDS_WITHOUT_RESULT, "purifier.", "detector.", "eval.")
# stage -> beginnings of the fields on which what it trains does not depend
IRRELEVANT_FIELDS = {
    "base": (
        *_ELSEWHERE, "attack.", "train.attacks", "train.assignment", "train.adversarial_weight",
        "train.num_steps",
    ),
    "adversarial": _ELSEWHERE,
}  # fmt: skip
RELEVANT_AFTER_ALL = {"base": (), "adversarial": ("eval.validation_attack",)}


def _refuse_other_config(workdir: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    fields = {**there, **here}.keys() - {*FIELDS_WITHOUT_RESULT}
    changed = [name for name in sorted(fields) if there.get(name) != here.get(name)]
    if changed:
        differences = ", ".join(
            f"config.{name}={here.get(name)} (there: {there.get(name)})" for name in changed
        )
        raise UserError(
            f"{workdir} holds a run of another config: {differences}; give another --workdir"
        )


def _git_commit() -> str:
    """Returns the commit of the code, marked where files differ from it; "" outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
