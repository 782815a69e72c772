import importlib
import pkgutil

import pytest

import configs
from configs import default
from medadv_jax import cli
from medadv_jax.config import flatten
from medadv_jax.errors import UserError
from medadv_jax.experiment.validate import RULES, check_batch, validate
from medadv_jax.models.pretrained import download
from tests.helpers.tiny import tiny_config

BAD_VALUES = [
    ("seed", -1, "at least 0"),
    ("attack.mask", "1.5", "none, pixel, or the share of the image"),
    ("eval.attacks", "universal,magic", "names out of apgd,"),
    ("eval.universal_epochs", 0, "at least 1"),
    ("defenses", "base,magic", "names out of adversarial, autoencoder, base, denoised,"),
    ("defenses", "adversarial", "such that base stands before adversarial"),
    ("defenses", "base,distilled", "such that adversarial stands before distilled"),
    ("distill.teacher", "distilled", "one of adversarial, autoencoder, base, denoised,"),
    ("distill.temperature", 0.0, "above 0"),
    ("data.name", "cifar", "one of breakhis, chest_xray, chest_xray14, folder, phantoms"),
    ("data.cache_dir", "", "a folder"),
    ("data.image_size", 8, "at least 32 and at most 1024"),
    ("data.fit", "stretch", "one of crop, pad"),
    ("data.split", "random", "one of image, official, patient"),
    ("data.per_class", -5, "at least 0"),
    ("data.num_folds", 1, "0, or from 2 to 100"),
    ("eval.images", 1, "0: all, or at least 2"),
    ("data.phantom_kind", "ct", "one of histology, xray"),
    ("data.phantom_images", 3, "at least 20"),
    ("data.augment.shift", 0.9, "at least 0 and at most 0.5"),
    ("data.augment.brightness", float("nan"), "at least 0 and at most 1"),
    ("model.name", "resnet18", "one of inception_v3, resnet50, vgg16, vgg19"),
    ("model.width", 0.0, "above 0 and at most 4"),
    ("model.normalization", "none", "one of auto, caffe, imagenet, symmetric"),
    ("model.conv_impl", "fast", "one of auto, cpu, gpu, plain"),
    ("model.precision", "float32", "one of default, high, highest"),
    ("model.dtype", "float16", "one of bfloat16, float32"),
    ("train.epochs", 0, "at least 1 with model.weights=none: an untrained network"),
    ("train.optimizer", "lion", "one of adam, adamw, sgd"),
    ("train.weight_decay", 0.01, "0 with adam"),
    ("train.momentum", 1.0, "at least 0 and below 1"),
    ("train.clip_norm", -1.0, "at least 0"),
    ("train.warmup_epochs", 21.0, "at most train.epochs=20"),
    ("train.ema", 1.0, "at least 0 and below 1"),
    ("train.class_weights", "auto", "one of balanced, none"),
    ("train.sampling", "all", "one of balanced, uniform"),
    ("train.objective", "pgd", "one of madry, mart, mixed, trades"),
    ("train.beta", -1.0, "at least 0"),
    ("train.method", "slow", "one of fast, free, multi_step, noise"),
    ("train.replays", 0, "at least 1"),
    ("train.weight_perturbation", 2.0, "at least 0 and at most 1"),
    ("train.dual_norm", "both", "one of attacked, clean, none"),
    ("train.label_smoothing", 1.0, "at least 0 and below 1"),
    ("train.batch_size", 0, "at least 1"),
    ("train.batch_size", 30, "a multiple of 4 attacks × 2 devices"),
    ("train.learning_rate", 0.0, "above 0"),
    ("train.learning_rate", float("inf"), "above 0"),
    ("train.schedule", "step", "one of constant, cosine"),
    ("train.attacks", "pgd,pgd", "each once"),
    ("train.attacks", "", "names out of bim, fgsm, mifgsm, pgd"),
    ("train.assignment", "some", "one of all, one"),
    ("train.adversarial_weight", 1.5, "at least 0 and at most 1"),
    ("train.num_steps", 0, "at least 1"),
    ("train.trainable", "tail", "one of all, head, last_stage"),
    ("model.weights", "", "none, a file of weights"),
    ("model.dropout", 1.0, "a rate below 1, or -1"),
    ("model.head", "gap", "auto: resnet50 has no such choice"),
    ("purifier.name", "vae", "one of dense, spatial, unet"),
    ("purifier.objective", "gan", "one of denoising, guided, reconstruction"),
    ("purifier.joint_epochs", -1, "at least 0"),
    ("detector.false_positive_rate", 1.0, "below 1"),
    ("attack.epsilon", -0.1, "at least 0"),
    ("attack.epsilon", float("nan"), "at least 0"),
    ("attack.norm", "l1", "one of l2, linf"),
    ("attack.loop", "while", "one of fori_loop, unrolled"),
    ("eval.attacks", "cw", "names out of apgd, apgd_t, autoattack, bim, fab, fgsm, fmn"),
    ("eval.restarts", 0, "at least 1"),
    ("eval.batch_size", 0, "at least 1"),
    ("eval.validation_attack", "cw", "one of apgd, auto, bim, fgsm, mifgsm, pgd"),
]


def assign(config, field, value):
    *sections, name = field.split(".")
    for section in sections:
        config = config[section]
    config[name] = value


@pytest.mark.parametrize(("field", "value", "allowed"), BAD_VALUES)
def test_impossible_value_is_named_with_what_is_allowed(field, value, allowed):
    config = default.get_config()
    assign(config, field, value)
    with pytest.raises(UserError) as caught:
        validate(config)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"config.{field}={value}: must be ")
    assert allowed in text


@pytest.mark.parametrize(
    ("field", "fields", "allowed"),
    [
        ("train.objective", {"train.method": "free"}, "madry with method=free"),
        ("train.weight_perturbation",
         {"train.method": "free", "train.objective": "madry", "train.weight_perturbation": 0.1},
         "0 with method=free"),
        ("train.method", {"train.objective": "trades", "train.method": "fast"},
         "multi_step with objective=trades"),
        ("train.assignment", {"train.objective": "mart", "train.assignment": "all"},
         "one with objective=mart and method=multi_step"),
        ("train.assignment", {"train.method": "fast", "train.assignment": "all"},
         "one with objective=mixed and method=fast"),
        ("train.label_smoothing", {"train.objective": "mart", "train.label_smoothing": 0.1},
         "0 with objective=mart"),
        ("train.dual_norm", {"train.objective": "madry", "train.dual_norm": "attacked"},
         "none with objective=madry"),
        ("train.dual_norm", {"model.name": "vgg16", "train.dual_norm": "clean"},
         "none: vgg16 has no BatchNorm"),
        ("train.dual_norm", {"train.trainable": "head", "train.dual_norm": "clean"},
         "none with trainable=head"),
        ("purifier.objective", {"defenses": "base,adversarial,purified"},
         "denoising or guided for defense purified"),
    ],
)  # fmt: skip
def test_parts_of_training_that_do_not_compose_are_refused_by_name(field, fields, allowed):
    config = default.get_config()
    for name, value in fields.items():
        assign(config, name, value)
    with pytest.raises(UserError, match=f"config.{field}=.*: must be {allowed}"):
        validate(config)


def test_weights_of_a_file_need_the_full_width():
    config = importlib.import_module("configs.pneumonia_vgg16").get_config()
    config.model.width = 0.5
    message = r"model.width=0.5: must be 1 with weights of a file; give model.width=1, or model.w"
    with pytest.raises(UserError, match=message):
        validate(config)
    config.model.weights = "none"
    validate(config)


def test_without_epochs_nothing_is_trained_adversarially():
    config = default.get_config()
    config.model.weights, config.train.epochs = "own.pth", 0
    message = r"train.epochs=0: must be at least 1 to train adversarial; give --config.defenses="
    with pytest.raises(UserError, match=message):
        validate(config)
    for defenses in ("base", "base,autoencoder"):
        config.defenses = defenses
        validate(config)
    config.defenses = "base"
    check_batch(config, 3, "training images")  # no batch is needed


def test_fold_beyond_the_last_is_refused():
    config = default.get_config()
    config.data.num_folds, config.data.fold = 5, 5
    with pytest.raises(UserError, match=r"config.data.fold=5: must be below num_folds=5"):
        validate(config)


NUMBERS = [name for name, v in flatten(default.get_config()).items() if type(v) in (int, float)]


@pytest.mark.parametrize("field", NUMBERS)
def test_every_number_has_an_upper_bound(field):
    for value in (10**20, 1e38, 1e308, 10**400):
        config = default.get_config()
        with config.unlocked():
            assign(config, field, type(flatten(config)[field])(min(value, 10**300)))
        with pytest.raises(UserError, match=rf"config.{field}=.*: must be "):
            validate(config)


@pytest.mark.parametrize(("norm", "most"), [("linf", 1.0), ("l2", 3**0.5 * 224)])
def test_a_radius_that_holds_every_image_is_refused(norm, most):
    config = default.get_config()
    config.attack.norm = norm
    config.attack.epsilon = most
    validate(config)
    for beyond in (1.01 * most, 8.0 * most):
        config.attack.epsilon = beyond
        with pytest.raises(UserError, match=rf"epsilon={beyond}: must be at most .*norm={norm}"):
            validate(config)
    config.attack.norm, config.attack.epsilon = "linf", 8.0
    with pytest.raises(UserError, match=r"epsilon=8.0: .*8/255 = 0.0314"):
        validate(config)


def test_momentum_stays_in_the_range_of_float32():
    config = default.get_config()
    config.attack.decay, config.eval.num_steps = 2.0, 99
    validate(config)
    config.eval.num_steps = 100
    with pytest.raises(UserError, match=r"decay=2.0: must be at most 2 with 100 steps"):
        validate(config)


def test_every_field_has_a_rule_and_every_rule_a_field():
    assert set(flatten(default.get_config())) == set(RULES)


CONFIGS = [m.name for m in pkgutil.iter_modules(configs.__path__) if not m.ispkg]  # no grids


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_is_possible(name):
    module = importlib.import_module(f"configs.{name}")
    validate(module.get_config())
    assert module.__doc__


@pytest.mark.parametrize("name", CONFIGS)
def test_the_configs_of_the_paper_start_from_imagenet_and_the_others_fresh(name):
    model = importlib.import_module(f"configs.{name}").get_config().model
    fresh = name in ("default", "demo", "folder")
    assert model.weights == ("none" if fresh else f"torchvision/{model.name}")
    assert fresh or model.weights in download.REGISTRY


def test_unknown_and_missing_fields_of_a_config_file_are_named():
    config = default.get_config()
    config.train.patience = 3
    with pytest.raises(UserError, match=r"config.train.patience: unknown field"):
        validate(config)
    config = default.get_config()
    del config.train.epochs
    with pytest.raises(UserError, match=r"config.train.epochs: missing"):
        validate(config)


def test_batch_larger_than_the_training_set_is_refused():
    config = tiny_config()
    check_batch(config, 16, "training images")
    with pytest.raises(
        UserError, match=r"config.train.batch_size=16: must be at most the 15 train"
    ):
        check_batch(config, 15, "training images")


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        (
            "--config.train.epoch=3",
            "config.train.epoch=3: unknown field; did you mean config.train.epochs?",
        ),
        (
            "--config.train.epsilon=0.01",  # in another section
            "config.train.epsilon=0.01: unknown field; did you mean config.attack.epsilon?",
        ),
        ("--config.nothing=3", "config.nothing=3: unknown field; known are"),
        ("--config.train.epochs=abc", "config.train.epochs=abc: must be an integer"),
        ("--config.train.epochs=2.5", "config.train.epochs=2.5: must be an integer"),
        ("--config.attack.epsilon=big", "config.attack.epsilon=big: must be a number"),
        (
            "--config.data.augment.flip=maybe",
            "config.data.augment.flip=maybe: must be true or false",
        ),
        ("--config.train.epochs=3", ""),
        ("--noconfig.data.augment.flip", ""),
    ],
)
def test_wrong_flag_is_explained(flag, line):
    explanation = cli._explain(["main.py", f"--config={default.__file__}", flag])
    assert explanation.startswith(line)
    assert bool(explanation) == bool(line)


def test_missing_config_file_is_explained():
    explanation = cli._explain(["main.py", "--config=configs/nope.py"])
    assert explanation.startswith("--config=configs/nope.py: cannot be read")
