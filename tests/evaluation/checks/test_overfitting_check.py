from medadv_jax.evaluation.checks.overfitting_check import overfitting_checks


def epoch(number, accuracy, fgsm, pgd, defense="adversarial"):
    prefix = "validation_adversarial_"
    return {
        "defense": defense, "epoch": number, f"{prefix}accuracy": accuracy, f"{prefix}loss": 1.0,
        f"{prefix}fgsm_accuracy": fgsm, f"{prefix}pgd_accuracy": pgd,
    }  # fmt: skip


OTHER = [{"defense": "base", "epoch": 1, "validation_accuracy": 0.9}]


def test_judges_the_deployed_epoch_and_names_the_others():
    lines = [*OTHER, epoch(1, 0.7, 0.75, 0.7), epoch(2, 0.1, 0.9, 0.1)]
    (found,) = overfitting_checks(lines, 150)
    assert (found.number, found.defense, found.verdict) == (13, "adversarial", "pass")
    assert "epoch 1, which is deployed" in found.explanation
    assert found.explanation.endswith("further apart: 2")


def test_far_below_fails_and_slightly_warns():
    verdicts = [
        overfitting_checks([epoch(1, pgd, 0.9, pgd)], n)[0].verdict
        for pgd, n in ((0.1, 150), (0.68, 150), (0.7, 150), (0.1, 2))
    ]
    assert verdicts == ["fail", "warn", "pass", "warn"]


def test_training_against_many_steps_has_no_such_check():
    assert overfitting_checks(OTHER, 150) == []
