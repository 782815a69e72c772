"""Serves a page that shows what a trained model says of an image, and of the image when attacked.

    python scripts/serve.py --model=FOLDER
    python scripts/serve.py --model=runs/x --defense=hybrid --port=8000

Needs the extra `serve`. It listens on this machine alone unless --host says otherwise; there is no
password. Images are read as scripts/predict.py reads them, up to 20 MB, and never written.
"""

from absl import flags

from medadv_jax import cli, load
from medadv_jax.config import expand_path
from medadv_jax.deployment.server import serve
from medadv_jax.distributed import enable_compilation_cache
from medadv_jax.errors import UserError

_MODEL = flags.DEFINE_string("model", "", "A model folder, or a run directory; needed.")
flags.DEFINE_alias("run", "model")
_DEFENSE = flags.DEFINE_string("defense", None, "Which classifier of a run directory.")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen at; 0.0.0.0: all.")
_PORT = flags.DEFINE_integer("port", 7860, "0: any free one.", lower_bound=0, upper_bound=65535)


def main() -> None:
    """Serves until it is stopped."""
    if not _MODEL.value:
        raise UserError("--model is missing: name a model folder, or a run directory")
    enable_compilation_cache("~/.cache/medadv_jax/programs")
    model = load(expand_path(_MODEL.value, "--model"), defense=_DEFENSE.value)
    serve(model, _HOST.value, _PORT.value)


if __name__ == "__main__":
    cli.run(main)
