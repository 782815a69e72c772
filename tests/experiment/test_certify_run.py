"""Certificates of a tiny run: trained, certified, killed on the way, reported."""

import io
import json
import shutil

import numpy as np
import pytest
from rich.console import Console

from medadv_jax import models
from medadv_jax.errors import UserError
from medadv_jax.evaluation.certificates import (
    CERTIFICATES,
    Settings,
    SmoothedAttack,
    read_certificates,
)
from medadv_jax.evaluation.checks.certificate_checks import certificates_hold
from medadv_jax.evaluation.predictions import to_columns
from medadv_jax.evaluation.stale_records import read_networks
from medadv_jax.experiment import certify_run as room
from medadv_jax.experiment.run import run as run_experiment
from medadv_jax.files import write_json
from tests.helpers.tiny import TinyNet, tiny_config

SETTINGS, ATTACK = Settings(selection=10, draws=60), SmoothedAttack(0.3, 2, 2, 20)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certified")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "resnet50", TinyNet)
        config = tiny_config()
        config.data.cache_dir = str(folder / "cache")
        config.defenses, config.eval.attacks = "base,smoothed,denoised", "fgsm"
        config.purifier.name, config.purifier.width = "unet", 0.25
        config.train.epochs = 1
        run_experiment(config, folder / "run", Console(file=io.StringIO()))
        yield folder / "run"


def certify(run, **options):
    room.certify_run(run, settings=SETTINGS, attack=ATTACK, count=8, attacked=2, **options)


@pytest.fixture(scope="module")
def certified(run):
    certify(run)
    return run


def test_every_image_has_one_row_of_each_smoothed_classifier(certified):
    columns = to_columns(read_certificates(certified))
    assert {*columns["defense"]} == {"smoothed", "denoised"}
    for name in ("smoothed", "denoised"):
        mine = columns["defense"] == name
        assert len({*columns["example"][mine]}) == mine.sum() == 8
        assert (columns["attacked_radius"][mine] > 0).sum() == 2
        assert {sum(votes) for votes in columns["attacked_votes"][mine]} == {0, 20}
    for counts, predicted in zip(columns["counts"], columns["predicted"], strict=True):
        assert sum(counts) == 60 or predicted == -1
    # 60 draws of one class bound its probability at 0.891 at least.
    assert columns["radius"].max() <= 0.25 * 1.24


def test_report_shows_them(certified):
    page = (certified / "report" / "index.html").read_text(encoding="utf-8")
    assert "Certified accuracy of smoothed classifiers" in page
    assert "Not guaranteed" in page
    assert (certified / "report" / "tables" / "certificates.csv").is_file()


def test_killed_command_goes_on_without_doing_an_image_twice(certified, tmp_path, monkeypatch):
    copy = tmp_path / "run"
    shutil.copytree(certified, copy)
    whole = read_certificates(copy)
    (copy / CERTIFICATES).unlink()
    monkeypatch.setattr(room, "_SAVED_EVERY", 0.0)
    done = []

    def dies(*arguments):
        for certificate in original(*arguments):
            if len(done) == 3:
                raise KeyboardInterrupt
            done.append(certificate)
            yield certificate

    original = room.certify
    monkeypatch.setattr(room, "certify", dies)
    with pytest.raises(KeyboardInterrupt):
        certify(copy, defenses=["smoothed"])
    assert 1 <= read_certificates(copy).num_rows <= 3
    given = []
    monkeypatch.setattr(
        room, "certify", lambda c, images, *rest: given.extend(images) or original(c, images, *rest)
    )
    certify(copy, defenses=["smoothed"])
    table = to_columns(read_certificates(copy))
    assert len(given) == 8 - 3
    first = to_columns(whole.filter(np.array(whole["defense"].to_pylist()) == "smoothed"))
    for name in ("predicted", "radius"):
        ours = dict(zip(table["example"], table[name], strict=True))
        assert ours == dict(zip(first["example"], first[name], strict=True))


def test_check_14_joins_those_of_the_run_only_if_it_has_some(certified):
    assert not (certified / "self_checks.json").exists()


def test_an_attack_that_breaks_a_promise_fails_the_check():
    columns = {
        "attacked_radius": np.array([0.5, 0.5, 0.0]),
        "radius": np.array([0.6, 0.4, 0.9]),
        "predicted": np.array([1, 1, 1]),
        "label": np.array([1, 1, 1]),
        "attacked_votes": np.array([[90, 110], [150, 50], []], object),
    }
    assert certificates_hold("smoothed", columns).verdict == "pass"  # the second promises less
    columns["attacked_votes"][0] = [105, 95]
    assert certificates_hold("smoothed", columns).verdict == "pass"  # may be chance
    columns["attacked_votes"][0] = [150, 50]
    found = certificates_hold("smoothed", columns)
    assert (found.verdict, found.number) == ("fail", 14)
    assert "certified 0.500" in found.explanation


def test_a_run_without_noise_is_refused(certified, tmp_path):
    saved = json.loads((certified / "config.json").read_text())
    copy = tmp_path / "run"
    shutil.copytree(certified, copy)
    saved["config"]["defenses"] = "base"
    saved.pop("digests", None)
    (copy / "config.json").write_text(json.dumps(saved))
    (copy / "digests.json").unlink(missing_ok=True)
    with pytest.raises(UserError, match="smoothed"):
        certify(copy)


def test_another_checkpoint_than_that_of_the_records_is_refused(certified, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(certified, copy)
    write_json(copy / "networks.json", {**read_networks(copy), "smoothed": "0" * 64})
    with pytest.raises(UserError, match="another checkpoint of smoothed"):
        certify(copy)
