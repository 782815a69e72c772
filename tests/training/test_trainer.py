import functools
import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from rich.console import Console

from medadv_jax import interrupts
from medadv_jax.attacks import make_attack, run_attacks
from medadv_jax.classifier import Classifier, to_pixels
from medadv_jax.data.loader import make_loader
from medadv_jax.defenses import get_defense
from medadv_jax.defenses.adversarial import adversarial_examples, run_training_attacks
from medadv_jax.distributed import put_batch
from medadv_jax.errors import UserError
from medadv_jax.progress import StageProgress
from medadv_jax.training.augment import _move, augment
from medadv_jax.training.checkpoints import Checkpoints
from medadv_jax.training.metric_writer import MetricsWriter
from medadv_jax.training.optimizer import make_optimizer
from medadv_jax.training.state import create_state
from medadv_jax.training.step import make_train_step
from medadv_jax.training.trainer import Trainer
from tests.helpers.tiny import SIZE, TinyNet, tiny_config, tiny_dataset


def make_mesh(devices):
    return jax.make_mesh(
        (devices,), ("data",), devices=jax.devices()[:devices], axis_types=(AxisType.Auto,)
    )


class Parts:
    """A classifier, its optimizer and its step, on some devices."""

    def __init__(
        self,
        defense="adversarial",
        devices=1,
        optimizer=None,
        epsilon=0.03,
        augmented=True,
        **fields,
    ):
        self.config = tiny_config()
        self.config.attack.epsilon = epsilon
        if not augmented:
            self.config.data.augment.update(shift=0.0, rotation=0.0, brightness=0.0)
        for name, value in fields.items():
            setattr(self.config.train, name, value)
        self.defense = get_defense(defense)
        self.traces = []
        self.classifier = Classifier(self.counting_network())
        self.optimizer = optimizer or make_optimizer(0.001, "constant", 6)
        self.mesh = make_mesh(devices)
        objective = self.defense.make_objective(self.config)
        self.updates = objective.replay.times if objective.replay else 1
        self.step = make_train_step(
            self.classifier, self.optimizer, objective, self.config.data.augment, None,
            self.config.train.ema,
        )  # fmt: skip

    def counting_network(self):
        traces = self.traces

        class Counting(TinyNet):
            def __call__(self, images, train=False):
                if train:
                    traces.append(images.shape)
                return super().__call__(images, train)

        return Counting()

    def state(self):
        key = jax.random.key(0)
        return create_state(
            self.classifier, self.optimizer, self.mesh, key, SIZE,
            average_decay=self.config.train.ema,
        )[0]  # fmt: skip

    def batches(self, count=40, epoch=0):
        return make_loader(tiny_dataset(count), range(count), 16, shuffle_seed=0, epoch=epoch)

    def run(self, count=40):
        state, rows = self.state(), []
        key = jax.random.key(1)
        for batch in self.batches(count):
            state, metrics = self.step(state, put_batch(self.mesh, batch), key)
            rows.append(jax.device_get(metrics))
        return jax.device_get(state), rows


def assert_trees_close(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


def test_step_is_traced_once_and_sees_clean_and_adversarial_images():
    parts = Parts()
    _, rows = parts.run(count=40)  # 3 batches, the last of them not full
    assert parts.traces == [(32, SIZE, SIZE, 3)]
    assert [row["count"] for row in rows] == [16, 16, 8]
    assert {"loss", "accuracy", "adversarial_accuracy"} <= set(rows[0])


@pytest.mark.parametrize("assignment", ["one", "all"])
def test_two_devices_equal_one(assignment):
    # Plain descent: Adam divides a gradient by its size, and so blows rounding up.
    states = [
        Parts(devices=n, assignment=assignment, optimizer=optax.sgd(0.1)).run()[0] for n in (1, 2)
    ]
    assert_trees_close(states[0].params, states[1].params, atol=1e-5)
    assert_trees_close(states[0].batch_stats, states[1].batch_stats, atol=1e-5)


def test_padding_has_no_say():
    parts = Parts()
    batch: dict[str, Any] = dict(list(parts.batches(40))[-1])
    assert batch["mask"].sum() == 8
    other = batch | {"label": np.where(batch["mask"] > 0, batch["label"], 1 - batch["label"])}
    key = jax.random.key(1)
    results = [parts.step(parts.state(), put_batch(parts.mesh, b), key) for b in (batch, other)]
    # Other labels give the masked rows other adversarial images, which BatchNorm sees; so the
    # parameters are compared in the base step, where labels enter by the loss alone.
    assert results[0][1]["accuracy"] == results[1][1]["accuracy"]
    base = Parts("base")
    results = [base.step(base.state(), put_batch(base.mesh, b), key) for b in (batch, other)]
    assert_trees_close(results[0][0].params, results[1][0].params, rtol=0, atol=0)


def test_attack_touches_neither_parameters_nor_statistics():
    """The statistics after a step are those of one training pass over clean and adversarial
    images; the attack's own passes leave no trace in them."""
    parts = Parts(assignment="all", augmented=False)
    batch = next(iter(parts.batches(16)))
    key = jax.random.key(1)
    before = parts.state()
    variables = jax.device_get(before.variables())
    after, _ = parts.step(before, put_batch(parts.mesh, batch), key)

    pixels, labels = to_pixels(jnp.asarray(batch["image"])), jnp.asarray(batch["label"])
    attack_key = jax.random.split(jax.random.fold_in(key, 0), 3)[1]
    examples = parts.defense.make_objective(parts.config).make_examples(
        parts.classifier.logits_fn(variables),
        pixels,
        labels,
        jnp.asarray(batch["mask"]),
        attack_key,
    )
    assert examples.images.shape[1] == 5
    flat = examples.images.reshape(-1, SIZE, SIZE, 3)
    _, expected = parts.classifier.train_logits(variables, flat, key)
    assert_trees_close(after.batch_stats, expected, atol=1e-6)


def test_attack_computes_no_weight_gradient():
    """A step of an attack costs a forward and a backward pass to pixels: twice the forward's
    operations. With weight gradients it would be three times."""
    classifier = Classifier(TinyNet())
    images = jnp.zeros((8, SIZE, SIZE, 3))
    labels = jnp.zeros(8, jnp.int32)
    variables = classifier.init(jax.random.key(0), SIZE)
    attack = make_attack("bim", epsilon=0.03, num_steps=1)

    def convolutions(function, *arguments):
        text = jax.jit(function).lower(*arguments).as_text()
        return text.count("stablehlo.convolution")

    forward = convolutions(classifier.logits, variables, images)
    attacked = convolutions(
        lambda v, x: run_attacks([attack], classifier.logits_fn(v), x, labels), variables, images
    )
    assert forward == 2
    assert attacked == 2 * forward

    def full(v, x):
        return jax.grad(lambda v, x: classifier.logits(v, x).sum(), argnums=(0, 1))(v, x)

    assert convolutions(full, variables, images) == 3 * forward  # so the count would tell


@pytest.mark.parametrize(("assignment", "columns"), [("one", 2), ("all", 3)])
def test_examples_weigh_one_together(assignment, columns):
    attacks = [make_attack(name, epsilon=0.1, num_steps=2) for name in ("fgsm", "mifgsm")]
    images = jax.random.uniform(jax.random.key(0), (4, SIZE, SIZE, 3))
    mask = jnp.array([1.0, 1.0, 1.0, 0.0])
    classifier = Classifier(TinyNet())
    examples = adversarial_examples(
        classifier.logits_fn(classifier.init(jax.random.key(0), SIZE)),
        images,
        jnp.array([0, 1, 0, 1]),
        mask,
        jax.random.key(0),
        attack=functools.partial(
            run_training_attacks, attacks=attacks, assignment=assignment, loop="fori_loop"
        ),
        weight=0.75,
    )
    assert examples.images.shape == (4, columns, SIZE, SIZE, 3)
    np.testing.assert_array_equal(examples.images[:, 0], images)
    assert jnp.abs(examples.images[:, 1:] - images[:, None]).max() > 0.05
    np.testing.assert_allclose(examples.weights.sum(), 1, atol=1e-6)
    np.testing.assert_allclose(examples.weights[:, 0].sum(), 0.25, atol=1e-6)
    np.testing.assert_array_equal(examples.weights[3], 0)


class Fit:
    """A trainer in a folder."""

    def __init__(self, folder, defense="base", **fields):
        self.parts = Parts(defense, **fields)
        self.folder = folder

    def __call__(self, epochs):
        parts = self.parts
        parts.config.train.epochs = epochs
        checkpoints, writer = Checkpoints(self.folder / "checkpoints"), MetricsWriter(self.folder)
        console = Console(file=io.StringIO())
        try:
            Trainer(
                config=parts.config,
                defense=parts.defense,
                train_step=parts.step,
                make_epoch=lambda epoch: parts.batches(40, epoch),
                validate=self.validate,
                checkpoints=checkpoints,
                writer=writer,
                progress=StageProgress(console, "train", 40 * epochs),
                mesh=parts.mesh,
                updates=parts.updates,
            ).fit(parts.state())
            last = jax.device_get(checkpoints.restore(checkpoints.latest(), parts.state()))
            return last, checkpoints.best()
        finally:
            checkpoints.close()
            writer.close()

    def validate(self, variables):
        return {
            "accuracy": 0.5,
            "loss": float(jnp.abs(variables["params"]["Dense_0"]["bias"]).sum()),
        }


def stop_and_resume(parts, folder, monkeypatch, count):
    """Returns (last state, best) of two epochs, and of as many that stop at step `count` and are
    started again."""
    monkeypatch.setattr(interrupts, "_stop", interrupts._Stop())

    def fit(name, stop_after=0):
        made = Fit.__new__(Fit)
        made.folder, made.parts = folder / name, parts
        made.folder.mkdir(exist_ok=True)
        seen, step = [], parts.step

        def counting(*arguments):
            seen.append(1)
            if len(seen) == stop_after:
                interrupts._stop.requested = 15
            return step(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(parts, "step", counting)
            return made(2)

    whole = fit("whole")
    with pytest.raises(interrupts.Stopped):
        fit("other", count)
    interrupts._stop.requested = 0
    return whole, fit("other")


def test_resumed_equals_never_stopped(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole, best = Fit(tmp_path / "a")(3)
    Fit(tmp_path / "b")(1)
    resumed, resumed_best = Fit(tmp_path / "b")(3)
    assert_trees_close(whole, resumed, rtol=0, atol=0)
    assert best == resumed_best
    lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    assert sum("validation_accuracy" in line for line in lines) == 3


def test_best_checkpoint_is_that_of_validation(tmp_path):
    fit = Fit(tmp_path)
    scores = iter([0.5, 0.9, 0.9, 0.7])
    fit.validate = lambda variables: {"accuracy": next(scores), "loss": 1.0}
    _, (best, metrics) = fit(4)
    assert (best, metrics["accuracy"]) == (3, 0.9)  # among equals the later
    kept = {p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()}
    assert kept == {"3", "4"}  # the best, and the newest to go on from


def test_loss_that_is_not_finite_stops_the_run_and_names_the_checkpoint(tmp_path):
    fit = Fit(tmp_path)
    fit(1)
    parts, step = fit.parts, fit.parts.step

    def poisoned(state, batch, key, frozen):
        state, metrics = step(state, batch, key)
        return state, metrics | {"loss": jnp.where(state.step == 5, jnp.nan, metrics["loss"])}

    parts.step = poisoned
    message = r"base: the loss is not finite at step 5 \(epoch 2\); last good checkpoint: .*/1;"
    with pytest.raises(UserError, match=message):
        fit(3)


def test_augmentation_keeps_range_and_leaves_images_alone_at_zero():
    settings = tiny_config().data.augment
    settings.update(flip=True, shift=0.2, rotation=30.0, brightness=0.5)
    images = jax.random.uniform(jax.random.key(0), (6, SIZE, SIZE, 3))
    run = jax.jit(functools.partial(augment, settings=settings))
    moved = run(jax.random.key(1), images)
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert (jnp.abs(moved - images).mean((1, 2, 3)) > 0.01).all()
    assert not np.array_equal(moved, run(jax.random.key(2), images))
    settings.update(flip=False, shift=0.0, rotation=0.0, brightness=0.0)
    np.testing.assert_array_equal(augment(jax.random.key(1), images, settings), images)


def test_rotation_turns_and_shift_moves_a_spot():
    image = jnp.zeros((33, 33, 1)).at[8, 16].set(1.0)
    for seed in range(4):
        key = jax.random.key(seed)
        draw = jax.random.uniform(key, (3,), minval=-1.0, maxval=1.0)
        turned = np.asarray(_move(key, image, 0.0, 90.0))[..., 0]
        at = np.array(np.unravel_index(turned.argmax(), turned.shape)) - 16
        np.testing.assert_allclose(np.hypot(*at), 8, atol=1.0)  # a turn keeps the radius
        angle = np.deg2rad(np.abs(90 * draw[0]))
        np.testing.assert_allclose(-at[0], 8 * np.cos(angle), atol=1.0)
        shifted = np.asarray(_move(key, image, 0.1, 0.0))[..., 0]
        at = np.array(np.unravel_index(shifted.argmax(), shifted.shape))
        np.testing.assert_allclose(at, np.array([8, 16]) - 3.3 * np.asarray(draw[1:]), atol=1.0)
