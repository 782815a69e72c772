"""A run directory belongs to one config: `config.json` says which."""

import json
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from medadv_jax.config import Config
from medadv_jax.errors import UserError
from medadv_jax.validation import flatten
from medadv_jax.writers import write_json

_PACKAGES = ("medadv_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def claim(workdir: Path, config: Config) -> None:
    """Writes `config.json`, or checks that the workdir belongs to the same config."""
    path = workdir / "config.json"
    if path.exists():
        saved = json.loads(path.read_text(encoding="utf-8"))["config"]
        _refuse_other_config(workdir, flatten(saved), flatten(config))
        return
    device = jax.devices()[0]
    content = {
        "config": config.to_dict(),
        "versions": {name: metadata.version(name) for name in _PACKAGES},
        "device": f"{jax.device_count()} × {device.device_kind} ({device.platform})",
        "git_commit": _git_commit(),
    }
    write_json(path, content)


def take_over(workdir: Path, config: Config) -> list[str]:
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
    saved = json.loads((other / "config.json").read_text(encoding="utf-8"))
    there, here = flatten(saved["config"]), flatten(config)
    for stage, apart in _APART.items():
        done, target = other / "checkpoints" / stage, workdir / "checkpoints" / stage
        names = [n for n in {**there, **here} if not n.startswith(apart) or n in _NOT_APART[stage]]
        changed = [name for name in sorted(names) if there.get(name) != here.get(name)]
        why = why or ", ".join(changed)
        if changed or stage not in config.defenses.split(",") or not done.is_dir():
            continue
        if not target.exists():
            beside = target.with_name(f".{stage}")
            shutil.copytree(done, beside, dirs_exist_ok=True)
            beside.replace(target)
        taken.append(f"{stage}: trained in {other} (commit {saved['git_commit'] or 'unknown'})")
    if not taken:
        raise UserError(f"config.reuse={config.reuse}: no stage would be the same: {why} differ")
    return taken


# stage -> beginnings of the fields on which what it trains does not depend
_ELSEWHERE = ("defenses", "reuse", "data.cache_dir", "purifier.", "detector.", "eval.")
_APART = {
    "base": (
        *_ELSEWHERE, "attack.", "train.attacks", "train.assignment", "train.adversarial_weight",
        "train.num_steps",
    ),
    "adversarial": _ELSEWHERE,
}  # fmt: skip
_NOT_APART = {"base": (), "adversarial": ("eval.validation_attack",)}


def _refuse_other_config(workdir: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    fields = {**there, **here}.keys() - {"data.cache_dir"}  # which changes no result
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
