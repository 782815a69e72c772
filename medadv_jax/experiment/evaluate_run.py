"""The classifiers of a finished run under any attacks, by `medadv_jax.evaluate`.

evaluate_run(Path("runs/x"), ["hybrid"], "autoattack")
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from medadv_jax.config import Config
from medadv_jax.data.loader import load_dataset
from medadv_jax.defenses import get_defense
from medadv_jax.errors import UserError
from medadv_jax.evaluation.decision_threshold import as_deployed, read_thresholds
from medadv_jax.evaluation.evaluate import CHECK_IMAGES, choose_attacks, evaluate
from medadv_jax.evaluation.model_under_test import choose_examples, read_images
from medadv_jax.evaluation.predictions import write_csv
from medadv_jax.evaluation.robustness import Robustness
from medadv_jax.experiment.finished_runs import (
    find_examples,
    load_runs,
    refuse_changed_images,
    refuse_other_checkpoints,
)
from medadv_jax.progress import default_console, say


def evaluate_run(
    run: Path,
    defenses: Sequence[str] = (),
    attacks: str = "autoattack",
    epsilon: float | None = None,
    count: int = 0,
    output: Path | None = None,
    check_images: int = CHECK_IMAGES,
) -> dict[str, Robustness]:
    """Evaluates classifiers of a run on its test images, prints and writes the results.

    A classifier with a purifier is attacked by its full gradient and by BPDA.

    Args:
      run: directory of a finished run.
      defenses: names; none: all of the run.
      attacks: names of attacks, comma-separated.
      epsilon: radius in pixels of [0, 1]; None: that of the run, whose norm is taken too.
      count: test images to take, drawn with as many of each class; 0: all.
      output: CSV file to write, with a line for each classifier and image.
      check_images: see `evaluate`.

    Returns:
      The result of each classifier.

    Raises:
      UserError: an unfinished run, or a defence or attack that does not exist.
    """
    config, test, (made,) = load_runs([run])
    names = list(defenses) or config.defenses.split(",")
    radius: float = config.attack.epsilon if epsilon is None else epsilon
    _check(config, run, names, attacks, radius)
    dataset, console = load_dataset(config.data), default_console()
    refuse_other_checkpoints([run], [made])
    refuse_changed_images(run, dataset)
    indices = find_examples(dataset, test, run)
    if count:
        indices = indices[choose_examples(dataset.labels[indices], count, config.seed)]
    images, labels = read_images(dataset, indices), dataset.labels[indices]
    results = {}
    for name in names:
        say(console, f"{name}: {len(indices)} test images under {attacks}")
        target = as_deployed(made.target(get_defense(name)), read_thresholds(run).get(name))
        function = functools.partial(made.predictor.classifier.logits, target.variables)
        purified = get_defense(name).purified
        results[name] = evaluate(
            functools.partial(function, gradient=target.deployed), images, labels, radius,
            config.attack.norm, attacks,
            surrogates=[functools.partial(function, gradient="bpda")] if purified else [],
            batch_size=made.eval_batch(), seed=config.seed, check_images=check_images,
        )  # fmt: skip
        say(console, results[name].summary())
    if output is not None:
        write_csv(output, result_lines(results, [dataset.examples[i].id for i in indices]))
    return results


def _check(config: Config, run: Path, names: Sequence[str], attacks: str, epsilon: float) -> None:
    """Raises UserError for what cannot be evaluated, before anything is loaded."""
    known = config.defenses.split(",")
    for name in names:
        if name not in known:
            raise UserError(f"--defense={name}: {run} has {', '.join(known)}")
    check_attacks(attacks, epsilon, config.attack.norm)


def check_attacks(attacks: str, epsilon: float, norm: str) -> None:
    """Raises UserError for attacks or a radius that do not exist."""
    try:
        choose_attacks(attacks, epsilon, norm)
    except ValueError as error:
        raise UserError(f"--attacks={attacks}, --epsilon={epsilon:g}: {error}") from error


def result_lines(results: Mapping[str, Robustness], examples: Sequence[str]) -> Iterator[list[str]]:
    """Yields the lines of all results, with defence and example in front."""
    for number, (name, result) in enumerate(results.items()):
        head, *rows = result.rows()
        if number == 0:
            yield ["defense", "example", *head[1:]]
        for example, (_, *cells) in zip(examples, rows, strict=True):
            yield [name, example, *cells]
