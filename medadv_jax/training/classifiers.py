"""The classifiers of a run: trains them, and restores them from their checkpoints."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console

from medadv_jax import interrupts
from medadv_jax.classifier import Classifier, Variables
from medadv_jax.config import Config
from medadv_jax.data.loader import Batch, Dataset, make_loader, steps_per_epoch
from medadv_jax.data.splits import Splits
from medadv_jax.defenses import Defense, get_defense
from medadv_jax.defenses.distilled import Student
from medadv_jax.defenses.multi_label import multi_label_loss
from medadv_jax.defenses.smoothing import with_noise
from medadv_jax.distributed import Share, make_local_mesh, make_mesh, to_local
from medadv_jax.evaluation.label_results import mean_auc_and_loss
from medadv_jax.evaluation.predictor import Predictor, accuracy_and_loss, predict_all
from medadv_jax.evaluation.threat_models import (
    Source,
    Target,
    Threat,
    choose_targets,
    overfitting_attacks,
    validation_attack,
)
from medadv_jax.progress import StageProgress
from medadv_jax.training.build import assemble, training_classifier
from medadv_jax.training.checkpoints import Checkpoints, tree_sha256
from medadv_jax.training.imbalance import balanced_weights, draw_balanced
from medadv_jax.training.metric_writer import MetricsWriter
from medadv_jax.training.optimizer import OptimizerOptions, make_optimizer
from medadv_jax.training.state import abstract_state, create_state, split
from medadv_jax.training.step import make_train_step
from medadv_jax.training.trainer import Trainer


class Classifiers:
    """The classifiers of a config's defences, with their checkpoints in the run directory.

    Args of the constructor: the config, the run directory, the names of label 0, 1, …

    Attributes:
      mesh: the devices of this process, which evaluate; training uses those of all processes.
      predictor: the compiled programs that attack and run all classifiers.
      notes: lines for the user about the weights they start from.
    """

    def __init__(self, config: Config, workdir: Path, class_names: Sequence[str]):
        self._config, self._workdir = config, workdir
        self._parts, self._num_classes = assemble(config, class_names), len(class_names)
        self._best: dict[str, Variables] = {}
        self.mesh, self.notes = make_local_mesh(), self._parts.notes
        self._training_mesh = make_mesh()
        defenses = [get_defense(name) for name in config.defenses.split(",")]
        every = self._parts.purified if any(d.purified for d in defenses) else self._parts.bare
        if any(defense.student for defense in defenses):
            every = dataclasses.replace(every, student=self._parts.student.network)
        self.predictor = Predictor(
            every,
            config.attack.loop,
            choose_targets(config, class_names),
        )

    def target(self, defense: Defense) -> Target:
        """Returns a trained classifier as it is deployed."""
        return Target(defense.deployed, self.variables(defense))

    def variables(self, defense: Defense) -> Variables:
        """Returns the variables of a trained classifier's best checkpoint."""
        if defense.name not in self._best:
            self._best[defense.name] = self._restore(defense)
        return self._best[defense.name]

    def classifier(self, defense: Defense) -> Classifier:
        """Returns the function of a defence's classifier, with its purifier if it has one."""
        if defense.student:
            return self._parts.student
        return self._parts.purified if defense.purified else self._parts.bare

    def sha256(self, defense: Defense) -> str:
        """Returns the SHA-256 of a trained classifier's variables."""
        return tree_sha256(self.variables(defense))

    def eval_batch(self) -> int:
        """Returns the evaluation batch, rounded up to a multiple of the devices."""
        devices = jax.local_device_count()
        return -(-self._config.eval.batch_size // devices) * devices

    def train(
        self,
        defense: Defense,
        dataset: Dataset,
        splits: Splits,
        writer: MetricsWriter,
        console: Console,
    ) -> str:
        """Trains one classifier to its last epoch, resuming from its newest checkpoint.

        Returns:
          "" after training; else why there was nothing to train.
        """
        training = defense.training(self._config)
        if not training.epochs and defense.needs:
            return "its parts are trained; nothing to do"
        with contextlib.closing(self._checkpoints(defense)) as checkpoints:
            if checkpoints.reached(training.epochs):
                return "done before"
            images, first = len(splits.train), checkpoints.latest()
            total, stage = images * training.epochs, f"train {defense.name}"
            with StageProgress(console, stage, total, images * first) as progress:
                progress.line(f"{training.epochs} epochs of {images} images")
                self._fit(defense, dataset, splits, checkpoints, writer, progress)
        return ""

    def _fit(
        self,
        defense: Defense,
        dataset: Dataset,
        splits: Splits,
        checkpoints: Checkpoints,
        writer: MetricsWriter,
        progress: StageProgress,
    ) -> None:
        """Trains one classifier from its newest checkpoint, else from its start."""
        config = self._config
        objective = defense.make_objective(config)
        if dataset.multi_label:
            objective = objective._replace(loss=multi_label_loss)
        updates = objective.replay.times if objective.replay else 1
        steps = updates * steps_per_epoch(len(splits.train), config.train.batch_size)
        optimizer, average_decay = self._optimizer(defense, steps), self._average_decay(defense)
        classifier = self._training_classifier(defense)
        step = make_train_step(
            classifier, optimizer, objective, config.data.augment,
            self._class_weights(defense, dataset.labels[splits.train]), average_decay,
        )  # fmt: skip
        state, frozen = create_state(
            classifier, optimizer, self._training_mesh, jax.random.key(config.seed),
            config.data.image_size, self._start(defense), defense.trained_layers(config),
            average_decay,
        )  # fmt: skip
        if defense.student:
            teacher = jax.device_get(self.variables(get_defense(config.distill.teacher)))
            everywhere = NamedSharding(self._training_mesh, PartitionSpec())
            frozen["teacher"] = jax.device_put(teacher, everywhere)
        Trainer(
            config=config,
            defense=defense,
            train_step=step,
            make_epoch=functools.partial(self._epoch, dataset, splits.train),
            validate=self._validator(defense, dataset, splits),
            checkpoints=checkpoints,
            writer=writer,
            progress=progress,
            mesh=self._training_mesh,
            frozen=frozen,
            updates=updates,
        ).fit(state)

    def _training_classifier(self, defense: Defense) -> Classifier:
        """Returns the classifier as it is trained; a student has its teacher beside it."""
        own = self.classifier(defense)
        if not defense.student:
            return training_classifier(own, self._config)
        teacher = self.classifier(get_defense(self._config.distill.teacher))
        precision = self._config.model.precision
        return Student(own.network, own.normalization, precision=precision, teacher=teacher)

    def _epoch(self, dataset: Dataset, train: Sequence[int], epoch: int) -> Iterator[Batch]:
        """Returns the training batches of an epoch, this process' part of each."""
        config, indices = self._config, np.asarray(train)
        if config.train.sampling == "balanced":
            indices = draw_balanced(indices, dataset.labels[indices], config.seed, epoch)
        return make_loader(
            dataset,
            indices,
            config.train.batch_size,
            shuffle_seed=config.seed,
            epoch=epoch,
            part=(jax.process_index(), jax.process_count()),
        )

    def _class_weights(self, defense: Defense, labels: np.ndarray) -> np.ndarray | None:
        """Returns the factors of the classes in the loss; None: 1, and for a purifier's loss."""
        if self._config.train.class_weights == "none" or defense.trains == "purifier":
            return None
        return balanced_weights(labels, self._num_classes)

    def _validator(
        self, defense: Defense, dataset: Dataset, splits: Splits
    ) -> Callable[[Variables], dict[str, float]]:
        """Returns variables -> accuracy and loss on the validation images; after training with
        attacks of one step also the accuracies of self-check 13. With several labels an image
        `mean_auc` and loss."""
        config = self._config
        deployed = defense.deployed
        gradient = "bare" if defense.chosen_under == "bare" else deployed
        attacks = []
        if defense.chosen_under:
            attacks.append(validation_attack(config, through_purifier=gradient == "full"))
        probes = overfitting_attacks(config) if defense.chosen_under == "full" else {}
        share = Share(len(splits.validation), self.eval_batch())
        mine = np.asarray(splits.validation)[share.mine]

        def stop_here(images: int) -> None:
            if jax.process_count() == 1:  # several stop together, after the validation
                interrupts.check(f"train {defense.name}")

        def validate(variables: Variables) -> dict[str, float]:
            variables = to_local(self.mesh, variables)
            batches = make_loader(dataset, mine, self.eval_batch(), shuffle_seed=None)
            if defense.smoothed:
                batches = with_noise(batches, config.defense.sigma, config.seed)
            threat = Threat(("",), (Source(gradient, variables),))
            predictions = predict_all(
                self.predictor, [*attacks, *probes.values()], [threat],
                Target(deployed, variables), batches, self.mesh, config.seed, stop_here, share,
            )  # fmt: skip
            if dataset.multi_label:
                return mean_auc_and_loss(predictions)
            first = predictions._replace(logits=predictions.logits[:, : 1 + len(attacks)])
            right = predictions.predicted == predictions.label[:, None]
            columns = enumerate(probes, start=1 + len(attacks))
            return accuracy_and_loss(first) | {
                name: float(right[:, column].mean()) for column, name in columns
            }

        return validate

    def _checkpoints(self, defense: Defense) -> Checkpoints:
        return Checkpoints(self._workdir / "checkpoints" / defense.name)

    def _optimizer(self, defense: Defense, steps: int) -> optax.GradientTransformation:
        """Returns the optimizer of a stage with `steps` steps an epoch."""
        train, (epochs, rate) = self._config.train, defense.training(self._config)
        options = OptimizerOptions()  # of purifiers, and of networks trained with them
        if defense.trains == "network":
            options = OptimizerOptions(
                train.optimizer, train.weight_decay, train.momentum, train.clip_norm,
                train.warmup_epochs,
            )  # fmt: skip
        return make_optimizer(rate, train.schedule, epochs * steps, options, steps)

    def _average_decay(self, defense: Defense) -> float:
        """Returns the decay of a stage's average of weights; 0: there is none."""
        return self._config.train.ema if defense.trains == "network" else 0.0

    def _start(self, defense: Defense) -> Variables | None:
        """Returns the variables that a stage starts from; None: fresh weights."""
        if defense.student:
            return None
        network = self._parts.start
        if defense.network_from:
            network = self.variables(get_defense(defense.network_from))
        if network is None or not defense.purified:
            return network
        if defense.purifier_from:
            purifier = self.variables(get_defense(defense.purifier_from))["purifier"]
        else:
            size, key = self._config.data.image_size, jax.random.key(self._config.seed)
            purifier = jax.jit(self._parts.purified.init_purifier, static_argnums=1)(key, size)
        own = {name: network[name] for name in ("params", "batch_stats")}
        return {**own, "purifier": purifier}

    def _restore(self, defense: Defense) -> Variables:
        """Returns the variables of the best checkpoint, frozen ones included."""
        if not defense.training(self._config).epochs and defense.needs:
            start = self._start(defense)
            assert start is not None, "a defence that trains nothing starts from other defences"
            return start
        classifier, size = self.classifier(defense), self._config.data.image_size
        trains = defense.trained_layers(self._config)
        # Shapes do not depend on the number of steps.
        optimizer = self._optimizer(defense, 1)
        decay = self._average_decay(defense)
        like = abstract_state(classifier, optimizer, self.mesh, size, trains, decay)
        frozen: Variables = {}
        if defense.trains == "purifier" or self._config.train.trainable != "all":
            start = self._start(defense)
            if start is None:
                key = jax.random.key(self._config.seed)
                start = jax.jit(classifier.init, static_argnums=1)(key, size)
            _, frozen = split(start, trains)
        with contextlib.closing(self._checkpoints(defense)) as checkpoints:
            return checkpoints.restore(checkpoints.best()[0], like).deployed(frozen)
