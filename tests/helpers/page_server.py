"""Serves the page of a tiny model at a free port, until the process is ended."""

from medadv_jax import models
from medadv_jax.deployment.server import serve
from tests.helpers.tiny import TinyNet, make_model

if __name__ == "__main__":
    models.MODELS |= dict.fromkeys(models.MODELS, TinyNet)
    serve(make_model(("cat", "dog"), purified=True), "127.0.0.1", 0)
