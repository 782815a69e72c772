"""Our implementation of every case, by the functions that a run calls.

Nothing is tuned for the benchmark: attacks are those of `evaluation.predictor.Predictor`, steps
those of `training.step.make_train_step`, with the backend's defaults.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.cases import ALL, ATTACKS, DECAY, EPSILON, RELATIVE_STEP, Case, Job
from benchmarks.flops import CLASSES
from configs import default
from medadv_jax.attacks import Attack
from medadv_jax.attacks.from_config import attack_from_config
from medadv_jax.classifier import Classifier, Variables
from medadv_jax.config import Config
from medadv_jax.defenses import get_defense
from medadv_jax.distributed import along_data, put_batch
from medadv_jax.evaluation.predictor import Predictor
from medadv_jax.evaluation.threat_models import Source, Target, evaluation_attacks, threats
from medadv_jax.models import create_model
from medadv_jax.training.optimizer import make_optimizer
from medadv_jax.training.state import create_state
from medadv_jax.training.step import make_train_step

KEY = 0  # of weights, random starts and dropout


def make_images(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Returns random images (B, H, W, 3) uint8 and labels (B,) int32, the same at every call."""
    rng = np.random.default_rng(0)
    shape = (case.batch, case.image_size, case.image_size, 3)
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    return images, rng.integers(0, CLASSES, case.batch, dtype=np.int32)


def case_config(case: Case) -> Config:
    """Returns the default config with the fields that the case sets."""
    config = default.get_config()
    config.model.update(name=case.model, dtype=case.precision)
    config.attack.update(epsilon=EPSILON, relative_step=RELATIVE_STEP, decay=DECAY)
    config.train.update(batch_size=case.batch, num_steps=max(1, case.num_steps))
    config.eval.num_steps = max(1, case.num_steps)
    if case.attack is not None:
        config.train.attacks = ",".join(ATTACKS) if case.attack == ALL else case.attack
    config.data.augment.update(shift=0.0, rotation=0.0, brightness=0.0)  # the peers have none
    return config


class Ours:
    """The compiled functions of one network, image size, batch and precision, and their inputs."""

    def __init__(self, case: Case, variables: Variables | None = None):
        """`case`: any with this network, size, batch and precision; `variables`: None: random."""
        self.case = case
        network = create_model(case.model, CLASSES, dtype=case.precision)
        self.classifier = Classifier(network, precision="default")  # TF32 on GPUs, as the peers
        self._predictor = Predictor(self.classifier)
        self.mesh = along_data(jax.devices()[: case.devices])
        self.key = jax.device_put(jax.random.key(KEY), self._replicated)
        if variables is None:
            variables = jax.jit(self.classifier.init, static_argnums=1)(self.key, case.image_size)
        self.variables = jax.device_put(variables, self._replicated)
        images, labels = make_images(case)
        mask = np.ones(len(labels), np.float32)
        index = np.arange(len(labels), dtype=np.int32)
        self.batch = put_batch(
            self.mesh, {"image": images, "label": labels, "mask": mask, "index": index}
        )
        pixels = images.astype(np.float32) / 255
        self.pixels = put_batch(self.mesh, {"image": pixels})["image"]

    @property
    def _replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def job(self, case: Case) -> Job:
        """Returns the job of a case."""
        runs = {
            "clean_step": self._step,
            "adversarial_step": self._step,
            "attack": self._attack,
            "evaluation": self._evaluation,
        }
        memory = _Memory(list(self.mesh.devices.flat))
        run = runs[case.task](case)
        return Job(case, "medadv_jax", run, jax.block_until_ready, memory=memory)

    def adversarial(self, attack: Attack) -> jax.Array:
        """Returns the adversarial images (B, H, W, 3) of an attack."""
        source = Source("bare", self.variables)
        return self._predictor.attack([attack], source, self.batch, self.key)[0]

    def logits(self, pixels: Any) -> np.ndarray:
        """Returns logits (B, K) of pixels (B, H, W, 3) in [0, 1]."""
        return np.asarray(jax.jit(self.classifier.logits)(self.variables, pixels))

    def _attack(self, case: Case) -> Callable[[], Any]:
        assert case.attack is not None
        attack = attack_from_config(case_config(case), case.attack, case.num_steps)
        return lambda: self.adversarial(attack)

    def stepper(self, case: Case) -> Callable[[Any], Any]:
        """Returns a function that takes one training step on a batch and keeps the new state."""
        config = case_config(case)
        optimizer = make_optimizer(config.train.learning_rate, "constant", 1)
        defense = get_defense("base" if case.task == "clean_step" else "adversarial")
        step = make_train_step(
            self.classifier, optimizer, defense.make_objective(config), config.data.augment
        )
        state: list[Any] = []  # created at the first call, to need no memory before

        def run(batch: Any) -> Any:
            if not state:
                state[:] = create_state(
                    self.classifier, optimizer, self.mesh, self.key, case.image_size, self.variables
                )[:1]
            new, metrics = step(state[0], batch, self.key)
            state[0] = new
            return new, metrics

        return run

    def _step(self, case: Case) -> Callable[[], Any]:
        step = self.stepper(case)
        return lambda: step(self.batch)

    def _evaluation(self, case: Case) -> Callable[[], Any]:
        config = case_config(case)
        attacks = evaluation_attacks(config)
        known = threats(get_defense("base"), self.variables, None)
        target = Target("bare", self.variables)
        return lambda: self._predictor.evaluate(attacks, known, target, self.batch, self.key)


class _Memory:
    """The allocator's peak on the device that needs most; None on a CPU, which has no statistics.

    The peak is the process's and cannot be reset, so it is a job's only if it rose.
    """

    def __init__(self, devices: list[Any]):
        self._devices, self._before = devices, 0

    def __call__(self) -> tuple[int | None, str | None]:
        stats = [device.memory_stats() for device in self._devices]
        peaks = [each.get("peak_bytes_in_use", 0) for each in stats if each]
        peak, before = max(peaks, default=0), self._before
        self._before = peak
        return (peak, "allocator") if peak > before else (None, None)
