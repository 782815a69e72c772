"""Certificates of the smoothed classifiers of a finished run, on its test images.

certify_run(Path("runs/x"), ["smoothed"], Settings(draws=10_000))
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pyarrow as pa
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console

from medadv_jax.config import Config
from medadv_jax.data.loader import Dataset, load_dataset
from medadv_jax.data.splits import Example
from medadv_jax.defenses import get_defense
from medadv_jax.defenses.smoothing import make_noise
from medadv_jax.distributed import use_own_settings
from medadv_jax.errors import UserError
from medadv_jax.evaluation.certificates import (
    RADII,
    Settings,
    SmoothedAttack,
    Subject,
    certificate_row,
    certified_accuracy,
    read_certificates,
    same_subject,
    write_certificates,
)
from medadv_jax.evaluation.certification import NoisyCounter, certify
from medadv_jax.evaluation.checks.certificate_checks import certificates_hold
from medadv_jax.evaluation.checks.result import Check, read_self_checks, write_self_checks
from medadv_jax.evaluation.model_under_test import choose_examples
from medadv_jax.evaluation.predictions import to_columns
from medadv_jax.evaluation.smoothed_attack import attack_smoothed
from medadv_jax.experiment import run_dir
from medadv_jax.experiment.finished_runs import (
    find_examples,
    load_runs,
    refuse_changed_images,
    refuse_other_checkpoints,
)
from medadv_jax.progress import StageProgress, default_console, say
from medadv_jax.training.classifiers import Classifiers

_SAVED_EVERY = 10.0  # seconds
_SETTINGS, _ATTACK = Settings(), SmoothedAttack(0.5)


class _Images(NamedTuple):
    """Test images to certify: examples, pixels (n, H, W, 3) uint8, and (n,) is it attacked?"""

    examples: list[Example]
    pixels: np.ndarray
    attacked: np.ndarray


def certify_run(
    run: Path,
    defenses: Sequence[str] = (),
    settings: Settings = _SETTINGS,
    attack: SmoothedAttack = _ATTACK,
    count: int = 300,
    attacked: int = 32,
) -> None:
    """Certifies classifiers of a run, writes `certificates.parquet`, check 14, and a new report.

    Images that have their certificate are not done again: a killed command goes on where it was.

    Args:
      run: directory of a finished run.
      defenses: names; none: the smoothed ones of the run.
      settings: of the certificates.
      attack: tries what the certificates exclude.
      count: test images, drawn with as many of each class; 0: all.
      attacked: how many of them are attacked.

    Raises:
      UserError: an unfinished run, or one without these defences.
    """
    use_own_settings()
    config, test, (made,) = load_runs([run])
    names = _names(config, run, defenses)
    dataset, console = load_dataset(config.data), default_console()
    refuse_other_checkpoints([run], [made])
    refuse_changed_images(run, dataset)
    images = _choose(config, dataset, find_examples(dataset, test, run), count, attacked)
    with run_dir.locked(run):
        for name in names:
            subject = Subject(name, float(config.defense.sigma), settings, attack)
            _certify(run, config, made, subject, images, console)
            _summarize(run, subject, images, console)
    from medadv_jax.report import write_report  # imported late: certifying needs no matplotlib

    say(console, f"{write_report([run], run / 'report')}: the report, with the certificates")


def _names(config: Config, run: Path, defenses: Sequence[str]) -> list[str]:
    known = config.defenses.split(",")
    names = list(defenses) or [name for name in known if get_defense(name).smoothed]
    if not names:
        raise UserError(
            f"{run}: no classifier was trained for noise; run one with"
            f" --config.defenses={config.defenses},smoothed, or name one by --defense"
        )
    for name in names:
        if name not in known:
            raise UserError(f"--defense={name}: {run} has {', '.join(known)}")
    return names


def _choose(
    config: Config, dataset: Dataset, indices: np.ndarray, count: int, attacked: int
) -> _Images:
    labels = dataset.labels[indices]
    if count:
        indices = indices[choose_examples(labels, count, config.seed)]
    rows = choose_examples(dataset.labels[indices], attacked, config.seed) if attacked else []
    chosen = np.isin(np.arange(len(indices)), rows)
    pixels = np.stack([dataset.source[int(index)] for index in indices])
    return _Images([dataset.examples[i] for i in indices], pixels, chosen)


def _certify(
    run: Path, config: Config, made: Classifiers, subject: Subject, images: _Images,
    console: Console,
) -> None:  # fmt: skip
    """Adds the certificates that are not there yet."""
    table = read_certificates(run)
    others = table.filter(pa.array(to_columns(table)["defense"] != subject.defense))
    kept = table.filter(pa.array(same_subject(table, subject)))
    known = set(kept["example"].to_pylist())
    rows = np.array([i for i, each in enumerate(images.examples) if each.id not in known], int)
    total, stage = len(images.examples), f"certify {subject.defense}"
    with StageProgress(console, stage, total, total - len(rows)) as progress:
        if not len(rows):
            return
        function = _function(config, made, subject)
        votes = _attack(function, subject, images, rows, config.seed)
        tables, saved, before = [others, kept], time.monotonic(), time.monotonic()
        for found in certify(
            function.counter, images.pixels[rows], subject.settings, jax.random.key(config.seed)
        ):
            now, row = time.monotonic(), int(rows[found.image])
            tables.append(
                certificate_row(
                    subject, images.examples[row], found, images.pixels[row].size, now - before,
                    votes.get(row, []),
                )
            )  # fmt: skip
            before = now
            progress.advance()
            if now - saved > _SAVED_EVERY:
                write_certificates(run, tables)
                saved = time.monotonic()
        write_certificates(run, tables)


class _Function(NamedTuple):
    """A classifier as compiled programs take it."""

    logits: Callable[[Any, jax.Array], jax.Array]
    variables: Any
    counter: NoisyCounter
    put: Callable[[Any], Any]


def _function(config: Config, made: Classifiers, subject: Subject) -> _Function:
    defense = get_defense(subject.defense)
    classifier = made.classifier(defense)
    folded, variables = classifier.folded(), classifier.fold(made.variables(defense))
    gradient = "full" if defense.purified else "bare"
    sharding = NamedSharding(made.mesh, PartitionSpec("data"))

    def logits(variables: Any, pixels: jax.Array) -> jax.Array:
        return folded.logits(variables, pixels, gradient)

    def put(tree: Any) -> Any:
        return jax.device_put(tree, sharding)

    size = (1, config.data.image_size, config.data.image_size, 3)
    shape = jax.ShapeDtypeStruct(size, np.float32)
    counter = NoisyCounter(
        logits, variables, make_noise(subject.sigma),
        jax.eval_shape(logits, variables, shape).shape[1], made.eval_batch(), put=put,
    )  # fmt: skip
    return _Function(logits, variables, counter, put)


def _attack(
    function: _Function, subject: Subject, images: _Images, rows: np.ndarray, seed: int
) -> dict[int, list[int]]:
    """Returns position -> votes of the images among `rows` that are attacked."""
    tried = [int(row) for row in rows if images.attacked[row]]
    if not tried:
        return {}
    labels = np.array([images.examples[row].label for row in tried], np.int32)
    found = attack_smoothed(
        function.logits, function.variables, images.pixels[tried], labels, subject.sigma,
        subject.attack, jax.random.key(seed), function.counter.slots, function.put,
    )  # fmt: skip
    return dict(zip(tried, found.counts.tolist(), strict=True))


def _summarize(run: Path, subject: Subject, images: _Images, console: Console) -> None:
    """Prints certified accuracies, and adds check 14 to those of the run, if it has any."""
    table = read_certificates(run)
    mine = np.array(table["defense"].to_pylist()) == subject.defense
    columns = to_columns(table.filter(pa.array(mine)))
    for at in RADII:
        share, interval = certified_accuracy(columns, at)
        between = f" ({interval[0]:.3f}–{interval[1]:.3f})" if interval else ""
        say(console, f"{subject.defense}: certified at L2 radius {at:g}: {share:.3f}{between}")
    result: Check = certificates_hold(subject.defense, columns)
    say(console, f"check 14 {result.name}: {result.verdict}: {result.explanation}")
    path = run / "self_checks.json"
    if checks := read_self_checks(path):
        rest = [c for c in checks if (c.number, c.defense) != (14, subject.defense)]
        write_self_checks(path, [*rest, result])
