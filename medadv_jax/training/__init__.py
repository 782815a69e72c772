"""From a config to trained classifiers: the compiled step, its state, the loop around it."""
