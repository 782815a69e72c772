from medadv_jax.training.cost import training_cost
from tests.helpers.tiny import tiny_config


def test_cost_is_summed_over_epochs_and_counts_every_gradient():
    config = tiny_config()
    config.train.update(objective="trades", num_steps=3, weight_perturbation=0.01)
    lines = [
        {"defense": "base", "epoch": 1, "images/s": 50.0},
        {"defense": "adversarial", "epoch": 1, "loss": 1.0},
        {"defense": "adversarial", "epoch": 1, "images/s": 10.0},
        {"defense": "adversarial", "epoch": 2, "images/s": 20.0},
    ]
    # Three steps of the attack; then two columns, twice.
    assert training_cost(config, lines, 100) == {
        "base": {"epochs": 1, "seconds": 2.0, "gradient_passes": 100.0},
        "adversarial": {"epochs": 2, "seconds": 15.0, "gradient_passes": 2 * 100 * (3 + 4)},
    }
