import functools
import http.server
import io
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from medadv_jax.data.download import fetch
from medadv_jax.errors import UserError


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        """Keeps the test's output clean."""


@pytest.fixture
def server(tmp_path: Path):
    """The address of a server of tmp_path/www, and that folder."""
    folder = tmp_path / "www"
    folder.mkdir()
    handler = functools.partial(_Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", folder
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_bars():
    tfds.disable_progress_bar()


def _archive(path: Path) -> None:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as content:
            content.writestr("set/a.txt", "A")
    else:
        with tarfile.open(path, "w:gz") as content:
            member = tarfile.TarInfo("set/a.txt")
            member.size = 1
            content.addfile(member, io.BytesIO(b"A"))


@pytest.mark.parametrize("name", ["x.tar.gz", "x.zip"])
def test_an_archive_is_fetched_once(server, tmp_path: Path, name: str):
    address, folder = server
    _archive(folder / name)
    target = fetch("toy", f"{address}/{name}", "HOME", tmp_path / "downloads")
    assert (target / "set" / "a.txt").read_text() == "A"
    assert [entry.name for entry in (tmp_path / "downloads").iterdir()] == ["toy"]
    (folder / name).unlink()
    assert fetch("toy", f"{address}/{name}", "HOME", tmp_path / "downloads") == target


@pytest.mark.parametrize("page", ["login.html", "missing.zip", None])
def test_what_cannot_be_fetched_is_one_line_and_leaves_nothing(server, tmp_path, page):
    address, folder = server
    (folder / "login.html").write_text("<html>log in</html>")
    url = f"{address}/{page}" if page else "http://127.0.0.1:9/x.zip"  # nobody listens there
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        fetch("toy", url, "http://home", tmp_path / "downloads")
    message = str(caught.value)
    assert time.monotonic() - start < 10
    assert "\n" not in message
    for part in ("data.dir", url, "http://home", "--config.data.dir="):
        assert part in message
    downloads = tmp_path / "downloads"
    assert not downloads.exists() or not list(downloads.iterdir())
