"""Several networks together: who fools whom, and how well they vote.

    members = load_members([Path("runs/x"), Path("runs/y")])
    table = transfer_rows(members, trial)    # adversarial examples of each, tried on every other
    table = ensemble_rows(members, trial)   # of each defence that all runs have, the votes

Runs of other networks, seeds or training are comparable where they test the same images under the
same attacks; anything else is refused.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from ml_collections import ConfigDict

from medadv_jax.attacks import Attack
from medadv_jax.classifier import to_pixels
from medadv_jax.config import Config, flatten, read_saved_config
from medadv_jax.data.loader import Dataset
from medadv_jax.data.splits import Example
from medadv_jax.defenses import get_defense
from medadv_jax.errors import UserError
from medadv_jax.evaluation.metrics import right_throughout
from medadv_jax.evaluation.model_under_test import scores
from medadv_jax.evaluation.predictions import SCHEMA, prediction_rows, read_predictions, rights
from medadv_jax.evaluation.predictor import Predictor
from medadv_jax.evaluation.threat_models import Source, Target
from medadv_jax.experiment.validate import validate
from medadv_jax.training.classifiers import Classifiers

VOTES = ("mean", "majority")
TRANSFER_SCHEMA = pa.schema(
    [("source_run", pa.string()), ("source_defense", pa.string()), ("run", pa.string()),
     *SCHEMA]
)  # fmt: skip

_TIES = 1e-3  # weight of the mean probability beside the votes: it decides between equal votes
_SAME = ("data.", "attack.", "eval.attacks", "eval.num_steps", "eval.restarts", "eval.keep_best")
_MAY_DIFFER = ("data.dir", "data.cache_dir", "data.augment.", "attack.loop")


@dataclasses.dataclass(frozen=True)
class Member:
    """A trained classifier of a run.

    Attributes:
      run: the name of the run.
      defense: its name.
      predictor: of its run.
      target: as it is deployed.
    """

    run: str
    defense: str
    predictor: Predictor
    target: Target


class Trial(NamedTuple):
    """What members are tried on, and how.

    Attributes:
      attacks: of the evaluation.
      dataset: of the examples.
      batches: of test images, on the host, of one shape; used up by one call.
      put: places a batch on the devices.
      seed: of random starts.
      loop: form of the attack loop on a committee; a member brings its own.
      advance: told the number of images done.
    """

    attacks: Sequence[Attack]
    dataset: Dataset
    batches: Iterable[Mapping[str, Any]]
    put: Callable[[Any], Any]
    seed: int
    loop: str = "fori_loop"
    advance: Callable[[int], None] = lambda images: None

    def placed(self) -> Iterator[tuple[Any, np.ndarray, list[Example]]]:
        """Yields a batch on the devices, which of its images are real (B,), and their examples."""
        for batch in self.batches:
            real = np.asarray(batch["mask"]) > 0
            yield self.put(batch), real, [self.dataset.examples[i] for i in batch["index"][real]]
            self.advance(int(real.sum()))


def load_runs(runs: Sequence[Path]) -> tuple[Config, list[str], list[Classifiers]]:
    """Brings back the classifiers of runs.

    Returns:
      The config of the first run, which stands for all in data, attacks and evaluation; the ids of
      their test examples; the classifiers of each run.

    Raises:
      UserError: a directory without a finished run, or runs of other images or attacks.
    """
    configs = [_config(run) for run in runs]
    fields = [flatten(config) for config in configs]
    for run, other in zip(runs, fields, strict=True):
        for name, value in fields[0].items():
            if name.startswith(_SAME) and not name.startswith(_MAY_DIFFER) and other[name] != value:
                raise UserError(
                    f"{run}: config.{name}={other[name]}, and {value} in {runs[0]}; give runs of"
                    " the same images and attacks"
                )
    tests = [json.loads((run / "splits.json").read_text(encoding="utf-8"))["test"] for run in runs]
    for run, test in zip(runs, tests, strict=True):
        if test != tests[0]:
            raise UserError(f"{run}: tests other images than {runs[0]}; give runs of one split")
    made = [Classifiers(config, run) for config, run in zip(configs, runs, strict=True)]
    return configs[0], tests[0], made


def load_members(runs: Sequence[Path], made: Sequence[Classifiers]) -> list[Member]:
    """Returns every classifier of every run; `made` from `load_runs`."""
    names = [run.resolve().name for run in runs]
    if len({*names}) < len(names):
        names = [str(run) for run in runs]
    members = []
    for run, name, classifiers in zip(runs, names, made, strict=True):
        for defense in _config(run).defenses.split(","):
            target = classifiers.target(get_defense(defense))
            members.append(Member(name, defense, classifiers.predictor, target))
    return members


def _config(run: Path) -> Config:
    for name in ("config.json", "splits.json", "predictions.parquet"):
        if not (run / name).is_file():
            raise UserError(f"{run}: {name} is missing; give the --workdir of a finished run")
    config: Config = ConfigDict(read_saved_config(run / "config.json")["config"])
    validate(config)
    done = read_predictions(run / "predictions.parquet")["defense"].unique().to_pylist()
    missing = [name for name in config.defenses.split(",") if name not in done]
    if missing:
        raise UserError(f"{run}: {missing[0]} is not evaluated yet; let the run finish first")
    return config


def transfer_rows(members: Sequence[Member], trial: Trial) -> pa.Table:
    """Tries the adversarial examples of every member on every member.

    Returns:
      Rows of `TRANSFER_SCHEMA`: clean answers (no source), then the answers of each member to the
      examples that each makes by the full gradient of what is deployed; a member's own are
      adaptive, the others transferred.
    """
    key, attacks, tables = jax.random.key(trial.seed), trial.attacks, []
    for batch, real, examples in trial.placed():
        clean = to_pixels(batch["image"])
        for target in members:
            name = ("none", "clean", 0.0)
            tables.append(_row(None, target, name, examples, _answers(target, clean)[real]))
        for source in members:
            gradient = Source(source.target.deployed, source.target.variables)
            found = source.predictor.attack(attacks, gradient, batch, key)
            for attack, pixels in zip(attacks, found, strict=True):
                for target in members:
                    threat = "adaptive" if source is target else "transfer"
                    name = (threat, attack.name, float(attack.epsilon))
                    answers = _answers(target, pixels)[real]
                    tables.append(_row(source, target, name, examples, answers))
    return pa.concat_tables(tables)


def _answers(member: Member, pixels: jax.Array) -> np.ndarray:
    return np.asarray(member.predictor.logits(member.target, pixels))


def _row(
    source: Member | None,
    target: Member,
    name: tuple[str, str, float],
    examples: Sequence[Example],
    logits: np.ndarray,
) -> pa.Table:
    rows = prediction_rows((target.defense, *name), examples, scores(logits), logits.argmax(axis=1))
    first = (source.run, source.defense) if source else ("", "")
    columns = [pa.array([value] * len(examples), pa.string()) for value in (*first, target.run)]
    return pa.table([*columns, *rows.columns], schema=TRANSFER_SCHEMA)


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Networks that answer together, in place of a `Classifier`; its variables are theirs."""

    members: tuple[Member, ...]
    attacked: bool = False  # whether the variables are folded

    def folded(self) -> "Ensemble":
        """As `Classifier.folded`."""
        return dataclasses.replace(self, attacked=True)

    def fold(self, variables: Sequence[Any]) -> tuple[Any, ...]:
        """As `Classifier.fold`, of each member."""
        pairs = zip(self.members, variables, strict=True)
        return tuple(member.predictor.classifier.fold(own) for member, own in pairs)

    def logits(self, variables: Sequence[Any], pixels: jax.Array, gradient: str) -> jax.Array:
        """Returns logits, (B, H, W, 3) in [0, 1] -> (B, K) float32.

        Args:
          variables: of each member.
          pixels: images.
          gradient: "mean": the logarithm of the mean probability; "majority": of the share of
            votes, equal shares decided by the mean probability, without a useful gradient;
            "log": the mean log-probability, whose gradient no sure member can hide; "bpda": the
            same with the members' purifiers taken for the identity in the backward pass.
        """
        answers = []
        for member, own in zip(self.members, variables, strict=True):
            word = member.target.deployed
            if gradient == "bpda" and word == "full":
                word = "bpda"
            predictor = member.predictor
            classifier = predictor.attacked if self.attacked else predictor.classifier
            logits = classifier.logits(own, pixels, word)
            answers.append(jax.nn.log_softmax(logits.astype(jnp.float32)))
        log = jnp.stack(answers)
        if gradient in ("log", "bpda"):
            return log.mean(axis=0)
        mean = jax.nn.logsumexp(log, axis=0) - jnp.log(len(answers))
        if gradient == "mean":
            return mean
        votes = jax.nn.one_hot(log.argmax(axis=-1), log.shape[-1]).mean(axis=0)
        return jnp.log((1 - _TIES) * votes + _TIES * jnp.exp(mean))


def ensemble_rows(members: Sequence[Member], trial: Trial) -> pa.Table:
    """Attacks the votes of members, one of each run and all of one defence, through all of them.

    Returns:
      Rows of `results.SCHEMA`, of defence "<defense>/mean" and "<defense>/majority": clean, and
      adaptive, the worst for each vote of the gradients of the mean probability and of the mean
      log-probability, with BPDA where there are purifiers.
    """
    committee = Ensemble(tuple(members))
    predictor = Predictor(committee, trial.loop)  # type: ignore[arg-type]  # it asks for logits alone
    variables: Any = tuple(member.target.variables for member in members)
    purified = any(member.target.deployed == "full" for member in members)
    words = ("mean", "log", "bpda") if purified else ("mean", "log")
    names = [("none", "clean", 0.0)]
    names += [("adaptive", attack.name, float(attack.epsilon)) for attack in trial.attacks]
    key, tables = jax.random.key(trial.seed), []
    for batch, real, examples in trial.placed():
        found = [predictor.attack(trial.attacks, Source(w, variables), batch, key) for w in words]
        for vote in VOTES:
            target = Target(vote, variables)
            clean = predictor.logits(target, to_pixels(batch["image"]))
            worst = predictor.worst_answers(target, found, batch["label"])
            for name, logits in zip(names, (clean, *worst), strict=True):
                logits = np.asarray(logits)[real]
                tables.append(
                    prediction_rows(
                        (f"{members[0].defense}/{vote}", *name), examples, scores(logits),
                        logits.argmax(axis=1),
                    )
                )  # fmt: skip
    return pa.concat_tables(tables)


def transfer_matrix(table: pa.Table) -> list[list[str]]:
    """Returns accuracies as lines of text: a line for each source, a column for each target; the
    worst over all attacks, for each example. The first line has the names, the second is clean.
    """
    names = ("source_run", "source_defense", "run", "defense", "example")
    keys = zip(*(table[name].to_pylist() for name in names), strict=True)
    right = right_throughout(keys, rights(table))
    cells: dict[tuple[str, str], list[bool]] = {}
    for (of, by, run, defense, _), good in right.items():
        cells.setdefault((f"{of}/{by}" if of else "clean", f"{run}/{defense}"), []).append(good)
    sources, targets = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
    lines = [["made on", *targets]]
    for source in sources:
        shares = [float(np.mean(cells[source, target])) for target in targets]
        lines.append([source, *(f"{share:.4f}" for share in shares)])
    return lines
