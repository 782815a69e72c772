"""The run directory: of one config, which `config.json` holds, and of one process at a time."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax

from medadv_jax.config import FIELDS_WITHOUT_RESULT, Config, expand_path, flatten, read_saved_config
from medadv_jax.data.splits import SPLITS, changed_images
from medadv_jax.errors import UserError
from medadv_jax.files import (
    DIGESTS,
    file_lock,
    read_json,
    remove_leftovers,
    sync,
    verify_records,
    write_json,
)

_PACKAGES = ("medadv_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class _Irrelevant(NamedTuple):
    """Fields on which a stage's training does not depend.

    Attributes:
      fields: names, or with a final dot whole sections.
      but: of these the ones on which it does depend.
    """

    fields: tuple[str, ...]
    but: tuple[str, ...] = ()


_ELSEWHERE = (
    "defenses", "reuse", *FIELDS_WITHOUT_RESULT, "purifier.", "detector.", "eval.",
    "distill.", "defense.", "attack.targeted", "attack.mask", "attack.grey",
)  # fmt: skip
# The stages that another run can reuse: those that train a network alone. A run that differs in
# irrelevant fields only trains the same weights, bit for bit; see `reuse_stages`.
IRRELEVANT_FIELDS = {
    "base": _Irrelevant(
        (
            *_ELSEWHERE, "attack.", "train.attacks", "train.assignment",
            "train.adversarial_weight", "train.num_steps", "train.objective", "train.beta",
            "train.method", "train.replays", "train.weight_perturbation", "train.dual_norm",
        )
    ),
    # Its best checkpoint is chosen under the validation attack.
    "adversarial": _Irrelevant(_ELSEWHERE, but=("eval.validation_attack", "eval.validation_steps")),
}  # fmt: skip


def relevant_differences(stage: str, there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Returns the fields that differ and on which the training of a stage depends, sorted.

    Args:
      stage: a key of `IRRELEVANT_FIELDS`.
      there, here: "section.field" -> value of two runs.
    """
    fields, but = IRRELEVANT_FIELDS[stage]
    return [
        name
        for name in sorted({**there, **here})
        if there.get(name) != here.get(name) and (name in but or not name.startswith(fields))
    ]


LOCK = ".lock"  # in a run directory; held by the process that is at work in it


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Keeps other processes out of a workdir.

    Raises:
      UserError: another process is at work in it, which the message names.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    remedy = "wait for it, or give another --workdir"
    with file_lock(workdir / LOCK, str(workdir), remedy=remedy):
        yield


def claim(workdir: Path, config: Config) -> list[str]:
    """Writes `config.json`, or checks that the workdir belongs to the same config.

    Then removes what killed processes left half written.

    Returns:
      Lines for the user: versions or device differ from those at the start of the run.

    Raises:
      UserError: the workdir belongs to another config, or a record in it is damaged.
    """
    notes = _claim(workdir, config)
    for folder in (workdir, workdir / "models", workdir / "report"):
        remove_leftovers(folder)
    return notes


def _claim(workdir: Path, config: Config) -> list[str]:
    path = workdir / "config.json"
    if path.exists():
        saved = read_saved_config(path)
        _refuse_other_config(workdir, flatten(saved["config"]), flatten(config))
        verify_records(workdir)
        now = _about()
        changed = [name for name in ("versions", "device") if saved.get(name) != now[name]]
        return [f"{workdir} was begun with other {name}" for name in changed]
    content = {"config": config.to_dict(), **_about(), "git_commit": _git_commit()}
    write_json(path, {**content, "digests": DIGESTS})
    return []


def _about() -> dict[str, Any]:
    device = jax.devices()[0]
    return {
        "versions": {name: metadata.version(name) for name in _PACKAGES},
        "device": f"{jax.device_count()} × {device.device_kind} ({device.platform})",
    }


def describe_machine() -> str:
    """Returns the devices and the versions of the main packages, in one line."""
    about = _about()
    return f"{about['device']}, {', '.join(' '.join(pair) for pair in about['versions'].items())}"


def refuse_other_images(
    path: Path, content: dict[str, Any], names: tuple[str, ...] = SPLITS
) -> None:
    """Raises UserError if a run would resume with other images or splits than it began with.

    Args:
      path: of `splits.json`, which may be missing; earlier versions kept no md5 sums in it.
      content: what it would hold now: the ids of every split, and the md5 sum of each image.
      names: the splits to compare.
    """
    if not path.exists():
        return

    def compare(before: dict[str, Any]) -> tuple[list[int], bool, list[str]]:
        sizes = [sum(len(part[name]) for name in names) for part in (before, content)]
        same = all(before[name] == content[name] for name in names)
        return sizes, same, list(changed_images(before, content.get("md5", {}), names))

    remedy = "delete it, and it is written again"
    sizes, same, changed = read_json(path, remedy, compare)
    if not same:
        raise UserError(
            f"{path}: the run began with other images or other splits ({sizes[0]} images then,"
            f" {sizes[1]} now); bring the data back, or give another --workdir"
        )
    if changed:
        raise UserError(
            f"{path}: the run began with other images: {len(changed)} of {sizes[0]} have another"
            f" content now, as {changed[0]}; bring the data back, or give another --workdir"
        )


def reuse_stages(workdir: Path, config: Config) -> list[str]:
    """Copies the trained stages of `config.reuse` that this config would train to the same weights.

    Args:
      workdir: of this run; stages that it holds already are kept.
      config: of this run; `config.reuse` is the run directory to copy from, "": none.

    Returns:
      A line for each stage that comes from there.

    Raises:
      UserError: `config.reuse` is no run, or this config would train every stage differently.
    """
    other, taken, why = expand_path(config.reuse, "config.reuse"), [], ""
    if not config.reuse:
        return []
    if not (other / "config.json").is_file():
        raise UserError(f"config.reuse={config.reuse}: holds no run; give the --workdir of one")
    saved = read_saved_config(other / "config.json")
    there, here = flatten(saved["config"]), flatten(config)
    for stage in IRRELEVANT_FIELDS:
        done, target = other / "checkpoints" / stage, workdir / "checkpoints" / stage
        changed = relevant_differences(stage, there, here)
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
    """Copies a stage atomically; UserError if another process is at work in its run."""
    beside = target.with_name(f".{target.name}")
    shutil.rmtree(beside, ignore_errors=True)  # left by a killed process
    with contextlib.ExitStack() as stack:
        if (other / LOCK).exists():
            stack.enter_context(file_lock(other / LOCK, f"config.reuse={other}", shared=True))
        shutil.copytree(done, beside, copy_function=_copy_to_disk)
    beside.replace(target)


def _copy_to_disk(source: str, target: str) -> None:
    shutil.copyfile(source, target)
    sync(Path(target))


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
    """Returns the git commit of the code, with "-dirty" if files differ; "" outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
