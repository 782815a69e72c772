"""Downloads published weights by name into a cache, and checks their digests.

    path = fetch("torchvision/resnet50")      # from the cache, else from the network

The digest of each file is pinned as its publisher gives it. torchvision puts the first 8 hex digits
of the SHA-256 into the file name; Keras publishes MD5 (keras 3.15.1,
`keras/src/applications/*.py`). Both detect damage, not deliberate forgery; downloads use HTTPS.
"""

import dataclasses
import hashlib
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medadv_jax.errors import UserError
from medadv_jax.files import atomic_write

CACHE_DIR = "~/.cache/medadv_jax/weights"
_ANSWER = 8.0  # seconds to wait for the server's answer to a HEAD request
_STALL = 30.0  # seconds without a byte while downloading
_MAX_BYTES = 1 << 30  # the largest file, VGG19, has 0.6e9
_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Published:
    """A published weights file.

    Attributes:
      url: of the file; its last part is the file name in the cache.
      algorithm: "sha256" or "md5".
      digest: hex digits, all or the first ones.
    """

    url: str
    algorithm: str
    digest: str


def _torchvision(file: str) -> Published:
    digest = file.rpartition("-")[2].removesuffix(".pth")
    return Published(f"https://download.pytorch.org/models/{file}", "sha256", digest)


def _keras(arch: str, digest: str, top: bool = True) -> Published:
    folder = "resnet" if arch == "resnet50" else arch
    file = f"{arch}_weights_tf_dim_ordering_tf_kernels{'' if top else '_notop'}.h5"
    base = "https://storage.googleapis.com/tensorflow/keras-applications"
    return Published(f"{base}/{folder}/{file}", "md5", digest)


REGISTRY: dict[str, Published] = {
    "torchvision/vgg16": _torchvision("vgg16-397923af.pth"),
    "torchvision/vgg19": _torchvision("vgg19-dcbb9e9d.pth"),
    "torchvision/resnet50": _torchvision("resnet50-0676ba61.pth"),
    "torchvision/inception_v3": _torchvision("inception_v3_google-0cc3c7bd.pth"),
    "keras/vgg16": _keras("vgg16", "64373286793e3c8b2b4e3219cbf3544b"),
    "keras/vgg16_notop": _keras("vgg16", "6d6bbae143d832006294945121d1f1fc", top=False),
    "keras/vgg19": _keras("vgg19", "cbe5617147190e668d6c5d5026f83318"),
    "keras/vgg19_notop": _keras("vgg19", "253f8cb515780f3b799900260a226db6", top=False),
    "keras/resnet50": _keras("resnet50", "2cb95161c43110f7111970584f804107"),
    "keras/resnet50_notop": _keras("resnet50", "4d473c1dd8becc155b73f8504c6f6626", top=False),
    "keras/inception_v3": _keras("inception_v3", "9a0d58056eeedaa3f26cb7ebd46da564"),
    "keras/inception_v3_notop": _keras(
        "inception_v3", "bcbd6486424b2319ff4ef7d526e38f63", top=False
    ),
}


def fetch(
    name: str, cache_dir: str | Path = CACHE_DIR, registry: dict[str, Published] | None = None
) -> Path:
    """Returns the path of a published file, downloaded unless the cache has it.

    Args:
        name: a key of `REGISTRY`.
        cache_dir: the folder that keeps the files.
        registry: instead of `REGISTRY`.

    Raises:
        UserError: the name is unknown, the digest differs, or the download fails; then the message
            says which file to put where.
    """
    registry = REGISTRY if registry is None else registry
    if name not in registry:
        raise UserError(f"weights {name!r} are unknown; known are {', '.join(sorted(registry))}")
    published = registry[name]
    folder = Path(cache_dir).expanduser()
    target = folder / published.url.rpartition("/")[2]
    if target.exists():
        _verify(target, published, str(target))
        return target
    try:
        with atomic_write(target) as beside:
            _within(_ANSWER, lambda: _ask(published.url))
            _download(published.url, beside)
            _verify(beside, published, "the downloaded file")
    except (OSError, ValueError) as error:  # urllib's errors are OSErrors
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(
            f"weights {name}: cannot be fetched ({reason}); download {published.url} elsewhere and "
            f"put it at {target}, or give the path of the file instead of the name"
        ) from error
    return target


def _ask(url: str) -> None:
    """Sends a HEAD request, so that a machine without network fails early."""
    request = urllib.request.Request(url, method="HEAD")
    with _open(request, _ANSWER) as reply:
        size = int(reply.headers.get("Content-Length") or 0)
    if size > _MAX_BYTES:
        raise ValueError(f"the server announces {size} bytes")


def _open(request: str | urllib.request.Request, timeout: float) -> Any:
    try:
        return urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()  # it holds the connection
        raise OSError(f"the server answers {error.code}") from None


def _within(seconds: float, action: Callable[[], Any]) -> None:
    """Runs `action`, waiting at most `seconds`; urllib's timeout does not cover name lookup."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:  # handed to the waiting thread
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer in {seconds:g} s")
    if raised:
        raise raised[0]


def _download(url: str, target: Path) -> None:
    with _open(url, _STALL) as reply, target.open("wb") as file:
        announced = int(reply.headers.get("Content-Length") or 0)
        size = 0
        while chunk := reply.read(_CHUNK):
            size += len(chunk)
            if size > _MAX_BYTES:
                raise ValueError(f"more than {_MAX_BYTES} bytes")
            file.write(chunk)
    if announced and size != announced:
        raise ValueError(f"{size} of {announced} bytes came")


def _verify(path: Path, published: Published, shown: str) -> None:
    if not path.is_file() or path.stat().st_size > _MAX_BYTES:
        raise UserError(f"{shown}: no regular file of at most {_MAX_BYTES} bytes; delete it")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, published.algorithm).hexdigest()
    if not digest.startswith(published.digest):
        raise UserError(
            f"{shown}: its {published.algorithm} begins with {digest[:8]}, that of {published.url} "
            f"with {published.digest[:8]}; delete it and fetch or copy it again"
        )
