"""What of a run is restricted by `attack.mask` and `attack.grey`, and what it is called."""

from medadv_jax.attacks.restriction import FREE, parse_restriction
from medadv_jax.defenses import train_attacks
from medadv_jax.evaluation.checks.second_opinion import other_attacks
from medadv_jax.evaluation.robustness_curves import curve_attacks
from medadv_jax.evaluation.threat_models import (
    evaluation_attack,
    evaluation_attacks,
    searching_attacks,
    universal_attack,
    validation_attack,
)
from tests.helpers.tiny import tiny_config


def restricted(mask, grey, attacks="fgsm,pgd,square,autoattack,universal"):
    config = tiny_config()
    config.attack.mask, config.attack.grey, config.eval.attacks = mask, grey, attacks
    return config


def test_every_attack_of_an_evaluation_is_restricted_and_none_of_training():
    for attacks in ("fgsm,pgd,square,autoattack,universal", "fgsm"):  # check 7 asks others
        config = restricted("0.1@0.2,0.3", True, attacks)
        evaluated = [*evaluation_attacks(config), *searching_attacks(config)]
        evaluated += [*curve_attacks(config), *other_attacks(config)]
        universal = universal_attack(config, 8)
        evaluated += [universal] if universal else []
        found = {attack.restriction for attack in evaluated}
        assert found == {parse_restriction("0.1@0.2,0.3", grey=True)}
        trained = [*train_attacks(config), validation_attack(config, through_purifier=True)]
        assert {attack.restriction for attack in trained} == {FREE}


def test_names_say_what_attackers_may_change():
    config = restricted("pixel", False, "fgsm,square,universal")
    assert [a.name for a in evaluation_attacks(config)] == ["fgsm_pixel"]
    assert [a.name for a in searching_attacks(config)] == ["square_pixel"]
    universal = universal_attack(config, 8)
    assert universal is not None
    assert universal.name == "universal_pixel"
    config = restricted("none", True)
    config.attack.targeted = "next"
    assert evaluation_attack(config, "pgd").name == "pgd_targeted_grey"
    config = restricted("none", False)
    assert evaluation_attack(config, "pgd").name == "pgd"
    assert universal_attack(restricted("none", False, "pgd"), 8) is None
