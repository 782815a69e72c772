"""A published file is fetched once and recognised; without network one line says what to do."""

import hashlib
import http.server
import importlib
import inspect
import os
import re
import threading
import time

import pytest

from medadv_jax.errors import UserError
from medadv_jax.models.pretrained import download as fetching
from medadv_jax.models.pretrained.download import REGISTRY, Published, fetch

CONTENTS = b"weights" * 1000


class Handler(http.server.BaseHTTPRequestHandler):
    requests: list[str]
    announced = len(CONTENTS)

    def do_HEAD(self):
        self.requests.append("HEAD")
        self.send_response(404 if "absent" in self.path else 200)
        self.send_header("Content-Length", str(self.announced))
        self.end_headers()

    def do_GET(self):
        self.requests.append("GET")
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENTS)))
        self.end_headers()
        self.wfile.write(CONTENTS[:-1] if "short" in self.path else CONTENTS)

    def log_message(self, *arguments):
        del arguments


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    Handler.requests, Handler.announced = [], len(CONTENTS)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def published(url, algorithm="sha256", length=8, contents=CONTENTS):
    digest = hashlib.new(algorithm, contents).hexdigest()[:length]
    return {"one": Published(url, algorithm, digest)}


def refusal(*arguments):
    with pytest.raises(UserError) as caught:
        fetch(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("algorithm", "length"), [("sha256", 8), ("md5", 32)])
def test_a_file_is_fetched_once(server, tmp_path, algorithm, length):
    registry = published(f"{server}/models/w.pth", algorithm, length)
    path = fetch("one", tmp_path / "cache", registry)
    assert path == tmp_path / "cache" / "w.pth"
    assert path.read_bytes() == CONTENTS
    assert fetch("one", tmp_path / "cache", registry) == path
    assert Handler.requests == ["HEAD", "GET"]
    assert list(path.parent.iterdir()) == [path]


def test_another_digest_is_refused_and_nothing_kept(server, tmp_path):
    registry = published(f"{server}/w.pth", contents=b"other")
    assert "its sha256 begins with" in refusal("one", tmp_path, registry)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "w.pth").write_bytes(b"something else")
    message = refusal("one", tmp_path, registry)
    assert str(tmp_path / "w.pth") in message
    assert "delete it" in message


def test_a_pipe_or_an_endless_file_in_the_cache_is_refused(tmp_path):
    registry = published("http://127.0.0.1:9/w.pth")
    os.mkfifo(tmp_path / "w.pth")
    assert "no regular file" in refusal("one", tmp_path, registry)
    (tmp_path / "w.pth").unlink()
    (tmp_path / "w.pth").touch()
    os.truncate(tmp_path / "w.pth", 6 << 30)
    assert "no regular file of at most" in refusal("one", tmp_path, registry)


@pytest.mark.parametrize("page", ["absent", "short"])
def test_a_failed_download_leaves_nothing(server, tmp_path, page):
    registry = published(f"{server}/{page}.pth")
    assert f"put it at {tmp_path / page}.pth" in refusal("one", tmp_path, registry)
    assert list(tmp_path.iterdir()) == []


def test_a_file_beyond_all_sizes_is_not_downloaded(server, tmp_path):
    Handler.announced = 1 << 40
    assert "announces" in refusal("one", tmp_path, published(f"{server}/w.pth"))
    assert Handler.requests == ["HEAD"]


def test_more_than_was_announced_is_not_kept(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "_MAX_BYTES", len(CONTENTS) - 1)
    Handler.announced = 1
    assert "more than 6999 bytes" in refusal("one", tmp_path, published(f"{server}/w.pth"))
    assert list(tmp_path.iterdir()) == []


def test_without_network_one_line_says_which_file_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    start = time.monotonic()
    url = "http://127.0.0.1:9/models/resnet50-0676ba61.pth"  # nothing listens there
    message = refusal("one", tmp_path, published(url))
    assert time.monotonic() - start < 10
    assert url in message
    assert f"put it at {tmp_path / 'resnet50-0676ba61.pth'}" in message


def test_a_server_that_is_silent_is_not_waited_for(tmp_path, monkeypatch):
    """Looking up a name may take minutes where packets are dropped, whatever the timeout."""
    done = threading.Event()
    monkeypatch.setattr(fetching, "_ANSWER", 0.2)
    monkeypatch.setattr(fetching, "_ask", lambda url: done.wait(20))
    start = time.monotonic()
    assert "no answer in 0.2 s" in refusal("one", tmp_path, published("http://127.0.0.1:9/w"))
    assert time.monotonic() - start < 5
    done.set()


def test_unknown_names_list_the_known_ones(tmp_path):
    assert "keras/vgg16, " in refusal("torchvision/alexnet", tmp_path)


def test_the_registry_is_whole():
    for name, file in REGISTRY.items():
        layout, arch = name.split("/")
        assert re.fullmatch(r"[0-9a-f]+", file.digest)
        assert len(file.digest) == {"torchvision": 8, "keras": 32}[layout]
        assert file.url.startswith("https://")
        assert arch.removesuffix("_notop") in file.url
        assert file.url.endswith("_notop.h5") == name.endswith("_notop")
    assert len({file.digest for file in REGISTRY.values()}) == len(REGISTRY) == 12


def test_digests_are_those_that_keras_itself_has(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    pytest.importorskip("keras", reason="keras is not installed")
    folder = "keras.src.applications"
    modules = [f"{folder}.{name}" for name in ("inception_v3", "resnet", "vgg16", "vgg19")]
    sources = "".join(inspect.getsource(importlib.import_module(name)) for name in modules)
    for name, file in REGISTRY.items():
        if name.startswith("keras/"):
            assert f'"{file.digest}"' in sources
