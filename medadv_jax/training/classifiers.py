"""The classifiers of a run: trains them, and restores them from their checkpoints."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import optax
from rich.console import Console

from medadv_jax import interrupts
from medadv_jax.classifier import Classifier, Variables
from medadv_jax.config import Config
from medadv_jax.data.loader import Dataset, make_loader, steps_per_epoch
from medadv_jax.data.splits import Splits
from medadv_jax.defenses import Defense, get_defense
from medadv_jax.distributed import make_local_mesh, make_mesh, to_local
from medadv_jax.evaluation.predictor import Predictor, accuracy_and_loss, predict_all
from medadv_jax.evaluation.threat_models import Source, Target, Threat, validation_attack
from medadv_jax.progress import StageProgress
from medadv_jax.training.build import assemble, training_classifier
from medadv_jax.training.checkpoints import Checkpoints, tree_sha256
from medadv_jax.training.metric_writer import MetricsWriter
from medadv_jax.training.state import abstract_state, create_state, make_optimizer, split
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
        self._parts = assemble(config, class_names)
        self._best: dict[str, Variables] = {}
        self.mesh, self.notes = make_local_mesh(), self._parts.notes
        self._training_mesh = make_mesh()
        purified = any(get_defense(name).purified for name in config.defenses.split(","))
        self.predictor = Predictor(
            self._parts.purified if purified else self._parts.bare, config.attack.loop
        )

    def target(self, defense: Defense) -> Target:
        """Returns a trained classifier as it is deployed."""
        return Target("full" if defense.purified else "bare", self.variables(defense))

    def variables(self, defense: Defense) -> Variables:
        """Returns the variables of a trained classifier's best checkpoint."""
        if defense.name not in self._best:
            self._best[defense.name] = self._restore(defense)
        return self._best[defense.name]

    def classifier(self, defense: Defense) -> Classifier:
        """Returns the function of a defence's classifier, with its purifier if it has one."""
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
        config, training = self._config, defense.training(self._config)
        with contextlib.closing(self._checkpoints(defense)) as checkpoints:
            first = checkpoints.latest()
            if first >= training.epochs:
                return "done before" if first else "its parts are trained; nothing to do"
            images, batch_size = len(splits.train), config.train.batch_size
            optimizer = self._optimizer(defense, steps_per_epoch(images, batch_size))
            classifier = training_classifier(self.classifier(defense), config)
            step = make_train_step(
                classifier, optimizer, defense.make_objective(config), config.data.augment
            )
            state, frozen = create_state(
                classifier, optimizer, self._training_mesh, jax.random.key(config.seed),
                config.data.image_size, self._start(defense), defense.trained_layers(config),
            )  # fmt: skip
            total, stage = images * training.epochs, f"train {defense.name}"
            with StageProgress(console, stage, total, images * first) as progress:
                progress.line(f"{training.epochs} epochs of {images} images")
                Trainer(
                    config=config,
                    defense=defense,
                    train_step=step,
                    make_epoch=lambda epoch: make_loader(
                        dataset,
                        splits.train,
                        batch_size,
                        shuffle_seed=config.seed,
                        epoch=epoch,
                        part=(jax.process_index(), jax.process_count()),
                    ),
                    validate=self._validator(defense, dataset, splits),
                    checkpoints=checkpoints,
                    writer=writer,
                    progress=progress,
                    mesh=self._training_mesh,
                    frozen=frozen,
                ).fit(state)
        return ""

    def _validator(
        self, defense: Defense, dataset: Dataset, splits: Splits
    ) -> Callable[[Variables], dict[str, float]]:
        """Returns variables -> accuracy and loss on the validation images."""
        config = self._config
        deployed = "full" if defense.purified else "bare"
        gradient = "bare" if defense.chosen_under == "bare" else deployed
        attacks = []
        if defense.chosen_under:
            attacks.append(validation_attack(config, through_purifier=gradient == "full"))

        def validate(variables: Variables) -> dict[str, float]:
            variables = to_local(self.mesh, variables)  # each process validates on all images
            batches = make_loader(dataset, splits.validation, self.eval_batch(), shuffle_seed=None)
            threat = Threat(("",), (Source(gradient, variables),))
            predictions = predict_all(
                self.predictor, attacks, [threat], Target(deployed, variables), batches,
                self.mesh, config.seed, lambda images: interrupts.check(f"train {defense.name}"),
            )  # fmt: skip
            return accuracy_and_loss(predictions)

        return validate

    def _checkpoints(self, defense: Defense) -> Checkpoints:
        return Checkpoints(self._workdir / "checkpoints" / defense.name)

    def _optimizer(self, defense: Defense, steps: int) -> optax.GradientTransformation:
        """Returns the optimizer of a stage with `steps` steps an epoch."""
        epochs, rate = defense.training(self._config)
        return make_optimizer(rate, self._config.train.schedule, epochs * steps)

    def _start(self, defense: Defense) -> Variables | None:
        """Returns the variables that a stage starts from; None: fresh weights."""
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
        if not defense.training(self._config).epochs:
            start = self._start(defense)
            assert start is not None, "a defence that trains nothing starts from other defences"
            return start
        classifier, size = self.classifier(defense), self._config.data.image_size
        trains = defense.trained_layers(self._config)
        # Shapes do not depend on the number of steps.
        optimizer = self._optimizer(defense, 1)
        like = abstract_state(classifier, optimizer, self.mesh, size, trains)
        frozen: Variables = {}
        if defense.trains == "purifier" or self._config.train.trainable != "all":
            start = self._start(defense)
            if start is None:
                key = jax.random.key(self._config.seed)
                start = jax.jit(classifier.init, static_argnums=1)(key, size)
            _, frozen = split(start, trains)
        with contextlib.closing(self._checkpoints(defense)) as checkpoints:
            return checkpoints.restore(checkpoints.best()[0], like).variables(frozen)
