"""From a config to trained classifiers: build, train step, its state, trainer, checkpoints."""
