"""What is trained and what is not, stage by stage; stages taken over; weights from a file."""

import contextlib
import io
import json
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from medadv_jax import interrupts, models
from medadv_jax.classifier import Classifier
from medadv_jax.data.splits import Splits
from medadv_jax.defenses import get_defense
from medadv_jax.distributed import make_mesh, put_batch
from medadv_jax.errors import UserError
from medadv_jax.experiment import run_dir
from medadv_jax.models import create_model, pretrained
from medadv_jax.models.pretrained.load import images_of
from medadv_jax.models.purifiers import create_purifier
from medadv_jax.training import classifiers as classifiers_module
from medadv_jax.training.build import assemble, training_classifier
from medadv_jax.training.checkpoints import Checkpoints
from medadv_jax.training.classifiers import Classifiers
from medadv_jax.training.metric_writer import MetricsWriter
from medadv_jax.training.optimizer import make_optimizer
from medadv_jax.training.state import create_state, train_all
from medadv_jax.training.step import make_train_step
from tests.helpers.tiny import CLASSES, SIZE, TinyNet, tiny_config, tiny_dataset


def assert_equal_trees(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture
def tiny_head(monkeypatch):
    monkeypatch.setitem(models.MODELS, "resnet50", TinyNet)
    monkeypatch.setitem(models.HEAD, "resnet50", ("Dense_0",))
    monkeypatch.setitem(models.LAST_STAGE, "resnet50", ("Conv_1",))


def one_step(name, config):
    """Returns the variables before and after one step of a defence, and the optimizer's state."""
    defense = get_defense(name)
    purifier = create_purifier("unet", width=0.25) if defense.purified else None
    classifier = training_classifier(Classifier(TinyNet(), purifier=purifier), config)
    optimizer = make_optimizer(0.01, "constant", 1)
    step = make_train_step(
        classifier, optimizer, defense.make_objective(config), config.data.augment
    )
    mesh, key = make_mesh(), jax.random.key(0)
    trains = defense.trained_layers(config)
    state, frozen = create_state(classifier, optimizer, mesh, key, SIZE, trains=trains)
    before = jax.device_get(state.variables(frozen))
    dataset = tiny_dataset(16)
    batch = {
        "image": np.stack([*dataset.source]),
        "label": dataset.labels,
        "mask": np.ones(16, "f"),
    }
    state, _ = step(state, put_batch(mesh, batch), key, frozen)
    return before, jax.device_get(state.variables(frozen)), state.opt_state


def changed(before, after):
    """Names (collection, layer) whose arrays a step has moved."""
    return {
        (collection, layer)
        for collection in before
        for layer in before[collection]
        if any(
            (a != b).any()
            for a, b in zip(
                jax.tree.leaves(before[collection][layer]),
                jax.tree.leaves(after[collection][layer]),
                strict=True,
            )
        )
    }


@pytest.mark.usefixtures("tiny_head")
def test_each_stage_trains_what_it_says():
    config = tiny_config()
    config.purifier.objective = "guided"
    network = {("params", name) for name in ("Conv_0", "BatchNorm_0", "Conv_1", "Dense_0")}
    statistics = {("batch_stats", "BatchNorm_0")}
    for name in ("base", "adversarial"):
        before, after, _ = one_step(name, config)
        assert changed(before, after) == network | statistics
    before, after, moments = one_step("autoencoder", config)
    assert {collection for collection, _ in changed(before, after)} == {"purifier"}
    size = sum(x.size for x in jax.tree.leaves(before["purifier"]))
    assert sum(x.size for x in jax.tree.leaves(moments)) == 2 * size + 1  # Adam's, and its counter
    before, after, _ = one_step("purified", config)
    assert {collection for collection, _ in changed(before, after)} == {"purifier"}
    for name in ("hybrid", "joint"):
        before, after, _ = one_step(name, config)
        assert {collection for collection, _ in changed(before, after)} == {
            "params", "batch_stats", "purifier",
        }  # fmt: skip


@pytest.mark.parametrize(
    ("trainable", "layers"), [("head", {"Dense_0"}), ("last_stage", {"Conv_1", "Dense_0"})]
)
@pytest.mark.usefixtures("tiny_head")
def test_frozen_layers_have_no_gradient_and_no_optimizer_state(trainable, layers):
    config = tiny_config()
    config.train.trainable = trainable
    before, after, moments = one_step("base", config)
    assert {name for collection, name in changed(before, after) if collection == "params"} == layers
    size = sum(x.size for n in layers for x in jax.tree.leaves(before["params"][n]))
    assert sum(x.size for x in jax.tree.leaves(moments)) == 2 * size + 1


def test_frozen_layers_cost_no_weight_gradients():
    """Training the head alone costs a forward pass and little more."""
    config = tiny_config()
    config.data.augment.update(shift=0.0, rotation=0.0, brightness=0.0)
    classifier, flops = Classifier(TinyNet()), {}
    optimizer, objective = make_optimizer(0.01, "constant", 1), get_defense("base")
    for kind, trains in (("all", train_all), ("head", lambda c, n: n == "Dense_0")):
        step = make_train_step(
            classifier, optimizer, objective.make_objective(config), config.data.augment
        )
        mesh = make_mesh()
        state, frozen = create_state(
            classifier, optimizer, mesh, jax.random.key(0), SIZE, trains=trains
        )
        batch = {"image": jnp.zeros((16, SIZE, SIZE, 3), jnp.uint8),
                 "label": jnp.zeros(16, jnp.int32), "mask": jnp.ones(16)}  # fmt: skip
        compiled = step.lower(state, batch, jax.random.key(0), frozen).compile()
        flops[kind] = compiled.cost_analysis()["flops"]
    assert flops["head"] < 0.6 * flops["all"]


@pytest.mark.parametrize("name", ["resnet50", "inception_v3"])
def test_frozen_norm_uses_and_keeps_its_statistics_in_train_mode(name):
    size = 75
    net = create_model(name, width=0.125, freeze_norm=True, conv_impl="plain")
    images = jax.random.normal(jax.random.key(0), (2, size, size, 3))
    variables = jax.jit(net.init)(jax.random.key(1), images)
    shifted = jax.tree.map(lambda x: x + 0.1, variables["batch_stats"])
    variables = {"params": variables["params"], "batch_stats": shifted}
    # Dropout off, so that what is left of train mode is BatchNorm.
    if hasattr(net, "dropout"):
        net = net.clone(dropout=0.0)
    trained, updated = jax.jit(lambda v, x: net.apply(v, x, train=True, mutable=["batch_stats"]))(
        variables, images
    )
    np.testing.assert_allclose(trained, jax.jit(net.apply)(variables, images), rtol=1e-4, atol=1e-6)
    assert_equal_trees(updated["batch_stats"], shifted)


# Stages of a run


def trained_run(folder, config, dataset):
    third = len(dataset.examples) // 3
    splits = Splits(*np.arange(3 * third).reshape(3, -1).tolist(), audit={}, notes=[])
    run_dir.claim(folder, config)
    classifiers = Classifiers(config, folder, CLASSES)
    console = Console(file=io.StringIO())
    with contextlib.closing(MetricsWriter(folder)) as writer:
        for name in config.defenses.split(","):
            classifiers.train(get_defense(name), dataset, splits, writer, console)
    return classifiers


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setitem(models.MODELS, "resnet50", TinyNet)
    config = tiny_config()
    config.data.image_size = SIZE
    config.train.epochs = config.train.num_steps = 1
    config.train.attacks = config.eval.attacks = "bim"
    config.purifier.name, config.purifier.width = "unet", 0.25
    config.defenses = "base,adversarial,autoencoder,hybrid"
    return config


def test_stages_hand_on_what_they_have_trained(config, tmp_path):
    classifiers = trained_run(tmp_path, config, tiny_dataset(48))
    base, adversarial, autoencoder, hybrid = (
        classifiers.variables(get_defense(name)) for name in config.defenses.split(",")
    )
    for collection in ("params", "batch_stats"):
        assert_equal_trees(autoencoder[collection], base[collection])
        assert_equal_trees(hybrid[collection], adversarial[collection])
    assert_equal_trees(hybrid["purifier"], autoencoder["purifier"])
    assert "purifier" not in base
    assert not (tmp_path / "checkpoints" / "hybrid").exists() or not any(
        (tmp_path / "checkpoints" / "hybrid").iterdir()
    )
    # Once more from the disk, by a fresh process' eyes.
    again = Classifiers(config, tmp_path, CLASSES)
    for name in config.defenses.split(","):
        defense = get_defense(name)
        assert_equal_trees(again.variables(defense), classifiers.variables(defense))
    # A checkpoint of the purifier holds no network.
    stored = jax.tree.leaves(autoencoder["purifier"])
    size = sum(f.stat().st_size for f in (tmp_path / "checkpoints/autoencoder").rglob("*"))
    assert size < 40 * sum(x.nbytes for x in stored)


def test_joint_training_starts_from_both_and_moves_both(config, tmp_path):
    config.purifier.joint_epochs = 1
    classifiers = trained_run(tmp_path, config, tiny_dataset(48))
    adversarial, autoencoder, hybrid = (
        classifiers.variables(get_defense(name))
        for name in ("adversarial", "autoencoder", "hybrid")
    )
    distance = [
        float(
            np.abs(np.asarray(hybrid[c]["Conv_0"]["kernel"]) - other[c]["Conv_0"]["kernel"]).max()
        )
        for c, other in (("params", adversarial),)
    ]
    assert 0 < distance[0] < 0.01  # a step or two of at most the learning rate
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), hybrid["purifier"],
                         autoencoder["purifier"])  # fmt: skip
    assert 0 < max(jax.tree.leaves(moved)) < 0.01


def test_reuse_takes_over_what_would_be_the_same_and_nothing_else(config, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    config.defenses = "base,adversarial"
    trained_run(first, config, tiny_dataset(48))
    config.reuse, config.purifier.bottleneck = str(first), 64
    taken = run_dir.reuse_stages(second, config)
    assert [line.partition(":")[0] for line in taken] == ["base", "adversarial"]
    copied = Classifiers(config, second, CLASSES)
    for name in ("base", "adversarial"):
        assert_equal_trees(
            copied.variables(get_defense(name)),
            Classifiers(config, first, CLASSES).variables(get_defense(name)),
        )
    config.attack.epsilon = 0.01  # base does not depend on it, adversarial training does
    taken = run_dir.reuse_stages(tmp_path / "third", config)
    assert [line.partition(":")[0] for line in taken] == ["base"]
    config.seed = 5
    with pytest.raises(UserError, match="no stage would be the same: seed"):
        run_dir.reuse_stages(tmp_path / "fourth", config)
    config.reuse = str(tmp_path / "nothing")
    with pytest.raises(UserError, match="holds no run"):
        run_dir.reuse_stages(tmp_path / "fourth", config)


def test_a_student_is_narrow_and_stopped_it_goes_on_to_the_same_bits(config, tmp_path, monkeypatch):
    """Its teacher stays as it was."""
    monkeypatch.setattr(interrupts, "_stop", interrupts._Stop())
    config.defenses, config.distill.epochs = "base,adversarial,distilled", 2
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    classifiers = trained_run(whole, config, tiny_dataset(96))
    student, teacher = (get_defense(name) for name in ("distilled", "adversarial"))
    shutil.copytree(whole, stopped, ignore=shutil.ignore_patterns("distilled"))
    again = Classifiers(config, stopped, CLASSES)
    assert_equal_trees(classifiers.variables(teacher), again.variables(teacher))
    assert classifiers.classifier(student).network.width == config.distill.width
    assert classifiers.target(student).deployed == "student"

    make, seen = classifiers_module.make_train_step, []

    def counting(*arguments):
        step = make(*arguments)

        def run(*arguments):
            seen.append(1)
            if len(seen) == 3:  # the first step of the second epoch
                interrupts._stop.requested = int(signal.SIGTERM)
            return step(*arguments)

        return run

    monkeypatch.setattr(classifiers_module, "make_train_step", counting)
    with pytest.raises(interrupts.Stopped, match="train distilled, epoch 2"):
        trained_run(stopped, config, tiny_dataset(96))
    monkeypatch.setattr(interrupts, "_stop", interrupts._Stop())
    finished = trained_run(stopped, config, tiny_dataset(96))
    assert_equal_trees(finished.variables(student), classifiers.variables(student))
    assert len(seen) == 4


# Weights from a file


def test_weights_of_a_file_are_where_training_starts(tmp_path):
    config = tiny_config()
    config.model.name = "vgg16"
    config.model.head = "gap"  # without the 120 million parameters of the dense layers
    net = create_model("vgg16", 1000, head="gap")
    shapes = jax.eval_shape(net.init, jax.random.key(0), images_of("vgg16"))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.random(x.shape, np.float32), shapes)
    path = tmp_path / "vgg16.safetensors"
    told = {
        "arch": "vgg16", "source": "keras", "options": json.dumps({"head": "gap", "dropout": 0.0}),
        "normalization": "caffe",
    }  # fmt: skip
    pretrained.save_converted(path, params, told)
    config.model.weights = str(path)
    parts = assemble(config, CLASSES)
    assert parts.bare.normalization == parts.purified.normalization == "caffe"
    assert parts.start is not None
    assert_equal_trees(parts.start["params"]["conv1_1"], params["params"]["conv1_1"])
    assert parts.start["params"]["fc"]["kernel"].shape == (512, 2)  # a new head
    assert "freshly initialised: params/fc/bias, params/fc/kernel" in parts.notes[0]
    config.model.normalization = "symmetric"
    parts = assemble(config, CLASSES)
    assert parts.bare.normalization == "symmetric"
    assert "expect caffe inputs" in parts.notes[1]


def test_weights_that_are_not_there_are_refused_in_one_line(tmp_path):
    config = tiny_config()
    config.model.weights = str(tmp_path / "nothing.pth")
    with pytest.raises(UserError, match=r"nothing\.pth") as caught:
        assemble(config, CLASSES)
    assert "\n" not in str(caught.value)


# Fields of training


def test_training_with_one_step_is_validated_under_one_and_many(config, tmp_path):
    config.train.method, config.defenses = "fast", "base,joint"
    trained_run(tmp_path, config, tiny_dataset(48))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = {line["defense"]: line for line in lines if "images/s" in line or len(line) > 6}
    names = {f"validation_adversarial_{name}_accuracy" for name in ("fgsm", "pgd")}
    assert names <= {*found["joint"]}
    assert not names & {*found["base"]}
    variables = Classifiers(config, tmp_path, CLASSES).variables(get_defense("joint"))
    assert {*variables} == {"params", "batch_stats", "purifier"}


def test_fields_of_training_reach_networks_and_not_purifiers(config, tmp_path, monkeypatch):
    """Decay, momentum and averages belong to base and adversarial; what is restored is what was
    validated."""
    config.train.update(optimizer="sgd", ema=0.5, class_weights="balanced", sampling="balanced")
    config.train.update(clip_norm=1.0, weight_decay=0.01, warmup_epochs=1.0)
    config.defenses = "base,autoencoder"
    seen = {}
    make = classifiers_module.Trainer

    def recorded(**parts):
        validate, name = parts["validate"], parts["defense"].name

        def validated(variables):
            seen[name] = jax.device_get(variables)
            return validate(variables)

        return make(**{**parts, "validate": validated})

    monkeypatch.setattr(classifiers_module, "Trainer", recorded)
    trained_run(tmp_path, config, tiny_dataset(48))
    again = Classifiers(config, tmp_path, CLASSES)
    for name in ("base", "autoencoder"):
        assert_equal_trees(again.variables(get_defense(name)), seen[name])
        stored = (tmp_path / "checkpoints" / name / "1" / "default" / "_METADATA").read_text()
        assert ("average" in stored) == (name == "base")


# The network of a file as it is: no epochs


def pretrained_tiny(monkeypatch, fresh=()):
    """Lets every file of weights be one of a `TinyNet`; returns its variables."""
    net = TinyNet()
    variables = net.init(jax.random.key(7), jnp.zeros((1, SIZE, SIZE, 3)))
    variables = jax.tree.map(np.array, dict(variables))
    told = pretrained.Pretrained(net, variables, "symmetric", {}, fresh, "its head is told")
    monkeypatch.setattr(pretrained, "load_network", lambda *_, **__: told)
    return variables


def test_without_epochs_the_file_is_what_is_deployed(config, tmp_path, monkeypatch):
    variables = pretrained_tiny(monkeypatch)
    config.model.weights, config.train.epochs = "own.pth", 0
    config.defenses = "base,autoencoder"
    config.train.ema, config.train.schedule = 0.9, "cosine"
    dataset = tiny_dataset(48)
    classifiers = trained_run(tmp_path, config, dataset)
    assert "own.pth: its head is told" in classifiers.notes[0]
    base, behind = (classifiers.variables(get_defense(n)) for n in ("base", "autoencoder"))
    for collection in ("params", "batch_stats"):
        assert_equal_trees(base[collection], variables[collection])
        assert_equal_trees(behind[collection], variables[collection])
    # The checkpoint has the accuracy of that network on the validation images.
    checkpoints = Checkpoints(tmp_path / "checkpoints" / "base")
    epochs, metrics = checkpoints.best()
    checkpoints.close()
    pixels = jnp.asarray(np.stack([*dataset.source])[16:32], jnp.float32) / 255
    logits = Classifier(TinyNet(), "symmetric").logits(variables, pixels)
    expected = float((jnp.argmax(logits, -1) == dataset.labels[16:32]).mean())
    assert (epochs, metrics["accuracy"]) == (0, pytest.approx(expected))
    # A second start finds it done, whatever the file holds by then.
    pretrained_tiny(monkeypatch)["params"]["Dense_0"]["bias"][:] = 9
    again = trained_run(tmp_path, config, dataset)
    assert_equal_trees(again.variables(get_defense("base")), base)


def test_without_epochs_a_head_must_be_trained(config, monkeypatch):
    pretrained_tiny(monkeypatch, fresh=("params/fc/bias",))
    config.model.weights, config.train.epochs = "own.pth", 0
    message = "train.epochs=0: needs a trained head for negative, positive; of own.pth, its head is"
    with pytest.raises(UserError, match=message):
        assemble(config, CLASSES)
