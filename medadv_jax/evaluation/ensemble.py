"""Several networks together: transfer of adversarial examples, and votes.

    table = transfer_rows(models, setup)    # adversarial examples of each, tried on every other
    table = ensemble_rows(models, setup)    # the votes of models that share a defence

`experiment/finished_runs.py` restores the models of finished runs.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from medadv_jax.attacks import Attack
from medadv_jax.classifier import to_pixels
from medadv_jax.data.loader import Dataset
from medadv_jax.data.splits import Example
from medadv_jax.evaluation.predictions import SCHEMA, correct_by, prediction_rows, to_columns
from medadv_jax.evaluation.predictor import Model, Predictor, scores
from medadv_jax.evaluation.threat_models import Source, Target

VOTES = ("mean", "majority")  # outputs of an ensemble that are deployed
_ORIGIN = [pa.field(name, pa.string()) for name in ("source_run", "source_defense", "run")]
TRANSFER_SCHEMA = pa.schema([*_ORIGIN, *SCHEMA])  # of two classes

_TIES = 1e-3  # weight of the mean probability beside the votes: it decides between equal votes


@dataclasses.dataclass(frozen=True)
class TrainedModel:
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

    def logits(self, pixels: jax.Array) -> np.ndarray:
        """Returns the deployed classifier's logits, (B, H, W, 3) in [0, 1] -> (B, K) float32."""
        return np.asarray(self.predictor.logits(self.target, pixels))


class EvaluationSetup(NamedTuple):
    """The images and attacks that models are evaluated on.

    Attributes:
      attacks: of the evaluation.
      dataset: of the examples.
      batches: of test images, on the host, of one shape; used up by one call.
      put: places a batch on the devices.
      seed: of random starts.
      loop: form of the attack loop on an ensemble; a single model has its own.
      advance: called with the number of images done.
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


def transfer_rows(models: Sequence[TrainedModel], setup: EvaluationSetup) -> pa.Table:
    """Tries the adversarial examples of every model on every model.

    Returns:
      Rows of `TRANSFER_SCHEMA`, of more classes with the scores of each: clean predictions (no
      source), then the predictions of each model on the examples that each makes by the full
      gradient of what is deployed; a model's own are adaptive, the others transferred.
    """
    key, attacks, tables = jax.random.key(setup.seed), setup.attacks, []
    for batch, real, examples in setup.placed():
        clean = to_pixels(batch["image"])
        for target in models:
            name = ("none", "clean", 0.0)
            tables.append(_rows(None, target, name, examples, target.logits(clean)[real]))
        for source in models:
            gradient = Source(source.target.deployed, source.target.variables)
            found = source.predictor.attack(attacks, gradient, batch, key)
            for attack, pixels in zip(attacks, found, strict=True):
                for target in models:
                    threat = "adaptive" if source is target else "transfer"
                    name = (threat, attack.name, float(attack.epsilon))
                    logits = target.logits(pixels)[real]
                    tables.append(_rows(source, target, name, examples, logits))
    return pa.concat_tables(tables)


def _rows(
    source: TrainedModel | None,
    target: TrainedModel,
    name: tuple[str, str, float],
    examples: Sequence[Example],
    logits: np.ndarray,
) -> pa.Table:
    rows = prediction_rows((target.defense, *name), examples, scores(logits), logits.argmax(axis=1))
    first = (source.run, source.defense) if source else ("", "")
    columns = [pa.array([value] * len(examples), pa.string()) for value in (*first, target.run)]
    return pa.table([*columns, *rows.columns], schema=pa.schema([*_ORIGIN, *rows.schema]))


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Models that vote; a `predictor.Model` whose variables are a sequence of theirs.

    `deployed`: the output of each model, as in `Target`.
    """

    models: tuple[Model, ...]
    deployed: tuple[str, ...]

    def folded(self) -> "Ensemble":
        """As `Classifier.folded`, of each model."""
        return dataclasses.replace(self, models=tuple(model.folded() for model in self.models))

    def fold(self, variables: Sequence[Any], /) -> tuple[Any, ...]:
        """As `Classifier.fold`, of each model."""
        pairs = zip(self.models, variables, strict=True)
        return tuple(model.fold(own) for model, own in pairs)

    def logits(self, variables: Sequence[Any], pixels: jax.Array, output: str, /) -> jax.Array:
        """Returns logits, (B, H, W, 3) in [0, 1] -> (B, K) float32.

        Args:
          variables: of each model.
          pixels: images.
          output: of `VOTES`, which are deployed, "mean": the logarithm of the mean probability, or
            "majority": of the share of votes, equal shares decided by the mean probability; no
            useful gradient. For attackers also "log": the mean log-probability, whose gradient no
            confident model can hide; "bpda": the same with purifiers taken for the identity in the
            backward pass.
        """
        logs = []
        for model, own, deployed in zip(self.models, variables, self.deployed, strict=True):
            bpda = output == "bpda" and deployed == "full"
            logits = model.logits(own, pixels, "bpda" if bpda else deployed)
            logs.append(jax.nn.log_softmax(logits.astype(jnp.float32)))
        log = jnp.stack(logs)
        if output in ("log", "bpda"):
            return log.mean(axis=0)
        mean = jax.nn.logsumexp(log, axis=0) - jnp.log(len(logs))
        if output == "mean":
            return mean
        votes = jax.nn.one_hot(log.argmax(axis=-1), log.shape[-1]).mean(axis=0)
        return jnp.log((1 - _TIES) * votes + _TIES * jnp.exp(mean))


def make_ensemble(models: Sequence[TrainedModel]) -> Ensemble:
    """Returns the ensemble of trained models, each as it is deployed."""
    return Ensemble(
        tuple(model.predictor.classifier for model in models),
        tuple(model.target.deployed for model in models),
    )


def ensemble_rows(models: Sequence[TrainedModel], setup: EvaluationSetup) -> pa.Table:
    """Attacks the votes of models, one of each run and all of one defence, through all of them.

    Returns:
      Rows of `predictions.record_schema`, of defence "<defense>/mean" and "<defense>/majority":
      clean, and adaptive, the worst for each vote of the gradients of the mean probability and of
      the mean log-probability, with BPDA where there are purifiers.
    """
    targets = models[0].predictor.choose_targets
    predictor = Predictor(make_ensemble(models), setup.loop, targets)
    variables = tuple(model.target.variables for model in models)
    purified = any(model.target.deployed == "full" for model in models)
    attacked = ("mean", "log", "bpda") if purified else ("mean", "log")
    sources = [Source(output, variables) for output in attacked]
    names = [("none", "clean", 0.0)]
    names += [("adaptive", attack.name, float(attack.epsilon)) for attack in setup.attacks]
    key, tables = jax.random.key(setup.seed), []
    for batch, real, examples in setup.placed():
        found = [predictor.attack(setup.attacks, source, batch, key) for source in sources]
        for vote in VOTES:
            target = Target(vote, variables)
            clean = predictor.logits(target, to_pixels(batch["image"]))
            worst = predictor.worst_logits(target, found, batch["label"])
            for name, logits in zip(names, (clean, *worst), strict=True):
                logits, defense = np.asarray(logits)[real], f"{models[0].defense}/{vote}"
                predicted = logits.argmax(axis=1)
                tables.append(
                    prediction_rows((defense, *name), examples, scores(logits), predicted)
                )
    return pa.concat_tables(tables)


def transfer_matrix(table: pa.Table) -> list[list[str]]:
    """Returns accuracies as lines of text: a line for each source, a column for each target.

    For each example the worst attack counts. The first line has the names, the second is clean.
    """
    names = ("source_run", "source_defense", "run", "defense", "example")
    cells: dict[tuple[str, str], list[bool]] = {}
    for (of, by, run, defense, _), correct in correct_by(to_columns(table), names).items():
        source = f"{of}/{by}" if of else "clean"
        cells.setdefault((source, f"{run}/{defense}"), []).append(correct)
    sources, targets = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
    lines = [["made on", *targets]]
    for source in sources:
        shares = [float(np.mean(cells[source, target])) for target in targets]
        lines.append([source, *(f"{share:.4f}" for share in shares)])
    return lines
