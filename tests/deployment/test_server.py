"""The page: its limits and texts; and all of it in a browser."""

import asyncio
import base64
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medadv_jax.data.bounded import BadImageError
from medadv_jax.deployment import server
from medadv_jax.deployment.inspection import View
from medadv_jax.deployment.server_guard import MOST_BODY, Guard
from medadv_jax.errors import UserError
from tests.helpers.tiny import make_model

ROOT = Path(__file__).parents[2]
NEEDS = "the extra `serve` is not installed"
CHROMIUM = shutil.which("chromium") or ""
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync"
)
RESULTS = [
    {"threat_model": "none", "evaluation": "clean", "epsilon": 0.0, "n": 9, "accuracy": 0.9,
     "low": 0.8, "high": 0.95},
    {"threat_model": "adaptive", "evaluation": "worst", "epsilon": 0.03, "n": 9, "accuracy": 0.5,
     "low": 0.4, "high": 0.6},
]  # fmt: skip


def sent(content: bytes, **fields) -> str:
    data = base64.b64encode(content).decode()
    return json.dumps({"name": "a.png", "size": len(content), "data": data} | fields)


def test_a_file_arrives_as_it_was_sent():
    for content in (b"", b"x", bytes(range(256)) * 9):
        assert server.read_sent(sent(content)) == ("a.png", content)


REFUSED = {
    "a large file, not sent": (sent(b"", size=30_000_000), "a.png has 30 MB, and the limit is 20"),
    "a large file, sent": (sent(b"x" * 20_000_001, size=1), "has 20 MB, and the limit is 20 MB"),
    "no JSON": ("{", "reload"),
    "a list": ("[]", "reload"),
    "no data": ('{"name": "a", "size": 1}', "reload"),
    "no base64": (sent(b"", data="§"), "reload"),
    "nothing": ("", "reload"),
    "null": (None, "reload"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_things_are_refused(name):
    content, message = REFUSED[name]
    with pytest.raises(BadImageError, match=message):
        server.read_sent(content)


def test_the_head_has_the_facts_of_the_card():
    found = {"defense": "hybrid", "dataset": "<script>", "results": RESULTS}
    text = server.head_html(make_model(("a", "<b>"), evaluation=found).description)
    assert "Not a medical device" in text
    assert "90.0% (80.0% to 95.0%, n = 9)" in text
    assert "under adaptive attacks, ε = 0.03" in text
    assert "<script>" not in text
    assert "a, &lt;b&gt;" in text


def test_a_view_is_escaped_and_has_its_verdicts():
    picture = Image.new("RGB", (32, 32))
    detectors = {"x": (0.5, 0.1, True), "y": (0.0, 0.1, False), "<z>": (0.0, None, False)}
    text = server.view_html(View({"a": 1.0}, detectors, {"<p>": picture}))
    for verdict in ("flagged", "passes", "not calibrated"):
        assert f"<b>{verdict}</b>" in text
    assert "<p>" not in text
    assert "<z>" not in text


@pytest.mark.parametrize(
    ("path", "headers", "body", "status"),
    [
        ("/", [], b"", 200),
        ("/gradio_api/upload", [], b"x", 403),
        ("/gradio_api/queue/join", [(b"content-length", b"%d" % (MOST_BODY + 1))], b"", 413),
        ("/gradio_api/queue/join", [(b"content-length", b"-1")], b"", 413),
        ("/gradio_api/queue/join", [], b"x" * (MOST_BODY + 1), None),
    ],
)
def test_the_guard(path, headers, body, status):
    """Uploads and large requests never reach the application, and it loads from no other host."""
    reached, answers = [], []

    async def app(scope, receive, send):
        message = await receive()
        if message["type"] == "http.request":
            reached.append(scope["path"])
            await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive():
        return {"type": "http.request", "body": body}

    async def send(message):
        answers.append(message)

    scope = {"type": "http", "path": path, "headers": headers}
    asyncio.run(Guard(app)(scope, receive, send))
    assert bool(reached) == (status == 200)
    assert (answers[0]["status"] if answers else None) == status
    if status == 200:
        policy = dict(answers[0]["headers"])[b"content-security-policy"]
        assert b"default-src 'self'" in policy
        assert b"http" not in policy


def test_without_gradio_it_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"gradio is missing; pip install 'medadv_jax\[serve\]'"):
        server.make_page(make_model(("a", "b")))


def test_an_address_that_cannot_be_had_is_one_line():
    model = make_model(("a", "b"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port={port}: Address already in use"):
            server.serve(model, "127.0.0.1", port)
    with pytest.raises(UserError, match=r"--host=nowhere\.invalid --port=0: "):
        server.serve(model, "nowhere.invalid", 0)


@pytest.fixture
def files(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "scan.png")
    (tmp_path / "large.png").write_bytes(b"x" * 30_000_000)
    (tmp_path / "text.png").write_text("hello")
    return tmp_path


@pytest.fixture
def address(tmp_path):
    """Of a page, served by a process whose temporary files are in `tmp_path`/temporary."""
    pytest.importorskip("gradio", reason=NEEDS)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.helpers.page_server"]
    with subprocess.Popen(
        command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[0]
        process.terminate()


@pytest.fixture
def browser():
    library = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM:
        pytest.skip("there is no chromium")
    with library.sync_playwright() as started:
        yield started.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())


@pytest.mark.slow
def test_the_page_in_a_browser(address, browser, files):
    """An image goes in, the slider moves, answers change; bad files are refused; nothing is
    written."""
    tab, requests = browser.new_page(), []
    tab.set_default_timeout(120_000)
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(address)
    tab.wait_for_selector("label.drop")
    assert "Not a medical device" in tab.inner_text("body")

    def put(name: str, message: str) -> None:
        tab.set_input_files("label.drop input", files / name)
        tab.get_by_text(message).wait_for()

    put("scan.png", "scan.png, ")
    tab.wait_for_selector("#looks img")
    clean = tab.inner_text("#clean")
    assert "cat" in clean
    assert "Move the slider" in tab.inner_text("#found")
    pictures = []
    for levels in ("2", "16"):
        field = tab.locator("#levels input[type=number]")
        field.fill(levels)
        field.press("Enter")
        tab.get_by_text(f"amplified {127 // int(levels)} times").wait_for()
        pictures.append((tab.inner_text("#attacked"), tab.inner_html("#found")))
    assert len({clean, *(text for text, _ in pictures)}) == 3
    assert pictures[0][1] != pictures[1][1]
    put("large.png", "Not read: large.png has 30 MB, and the limit is 20 MB.")
    put("text.png", "Not read: not an image")
    assert tab.locator("#looks img").count() == 0
    put("scan.png", "scan.png, ")
    tab.wait_for_selector("#looks img")
    assert tab.inner_text("#clean") == clean
    assert [url for url in requests if not url.startswith((address, "data:"))] == []
    assert [name for *_, names in os.walk(files / "temporary") for name in names] == []
    assert not (files / ".gradio").exists()
