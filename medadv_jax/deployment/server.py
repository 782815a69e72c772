"""The page of `scripts/serve.py`: an image goes in, and predictions and attacks come out.

The image travels as text inside the page's own events. Gradio's upload fields would write it to
disk, and are closed; see `server_guard.py`. Pictures go back as `data:` URLs.
"""

# pyright: reportMissingImports=false
# The extra `serve` is not in the lock file that the code is checked with.

import base64
import binascii
import io
import json
import os
import socket
import threading
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medadv_jax.data.bounded import BadImageError
from medadv_jax.deployment.description import Description
from medadv_jax.deployment.inspection import Inspector, View
from medadv_jax.deployment.model import Model
from medadv_jax.deployment.server_guard import Guard
from medadv_jax.errors import UserError

MOST = 20_000_000  # bytes of an image file
MOST_LEVELS = 16  # of the slider, in steps of 8-bit pixels
_SHOWN = 224  # pixels of a picture's side, at least; smaller ones are enlarged by a whole factor
_START = "Move the slider to attack the image."

State = np.ndarray | None  # the image of a visitor, in memory


def make_page(model: Model) -> Any:
    """Returns the page of a model, a `gradio.Blocks`.

    Raises:
      UserError: Gradio is missing.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read at import
    try:
        import gradio
    except ImportError as error:
        raise UserError(f"{error.name} is missing; pip install 'medadv_jax[serve]'") from error
    inspector = Inspector(model)
    inspector.warm_up()
    with gradio.Blocks(title="medadv_jax", analytics_enabled=False) as page:
        gradio.HTML(head_html(model.description))
        image = gradio.State(None)
        with gradio.Row():
            with gradio.Column(scale=1, min_width=320):
                drop = gradio.HTML(
                    html_template=_asset("drop.html"), js_on_load=_asset("drop.js"), most=MOST
                )
                status = gradio.HTML(note("No image yet."), elem_id="status")
                clean = gradio.Label(label="Class and probability", elem_id="clean")
            with gradio.Column(scale=2, min_width=320):
                looks = gradio.HTML(elem_id="looks")
        with gradio.Row():
            with gradio.Column(scale=1, min_width=320):
                levels = gradio.Slider(
                    0, MOST_LEVELS, 0, step=1, label="Attack: ε in grey levels of 255",
                    info="PGD, 10 steps, against the predicted class; the attacker knows all.",
                    elem_id="levels",
                )  # fmt: skip
                attacked = gradio.Label(label="Class when attacked", elem_id="attacked")
            with gradio.Column(scale=2, min_width=320):
                found = gradio.HTML(note(_START), elem_id="found")
        answers = Answers(inspector)
        drop.input(answers.look, [drop], [drop, image, status, clean, looks, levels]).then(
            answers.attack, [image, levels], [attacked, found]
        )
        levels.change(
            answers.attack, [image, levels], [attacked, found], trigger_mode="always_last"
        )
    return page


class Answers:
    """What the page answers to its events."""

    def __init__(self, inspector: Inspector):
        self._inspector = inspector

    def look(self, sent: str) -> tuple[Any, ...]:
        """Returns the new contents of the page after an image, or what is wrong with it."""
        try:
            name, content = read_sent(sent)
            image = self._inspector.model.read(content)
        except BadImageError as error:
            return "", None, note(f"Not read: {error}.", bad=True), None, "", 0
        view = self._inspector.look(image)
        size = f"{len(content) / 1e6:.1f} MB" if len(content) > 1e5 else f"{len(content)} bytes"
        return "", image, note(f"{name}, {size}"), view.probability, view_html(view), 0

    def attack(self, image: State, levels: float) -> tuple[Any, str]:
        """Returns probabilities and pictures of the attacked image."""
        if image is None or levels < 1:
            return None, note(_START)
        view = self._inspector.attack(image, int(levels))
        return view.probability, view_html(view)


def _asset(name: str) -> str:
    return (Path(__file__).parent / "page" / name).read_text(encoding="utf-8")


def read_sent(sent: str) -> tuple[str, bytes]:
    """Returns the name and the content of a file that the page sent.

    Raises:
      BadImageError: too large, or not sent by the page.
    """
    try:
        found = json.loads(sent)
        name, content = str(found["name"])[:80], base64.b64decode(found["data"], validate=True)
        size = max(int(found["size"]), len(content))
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise BadImageError("the page sent no file; reload it") from error
    if size > MOST:
        raise BadImageError(f"{name} has {size / 1e6:.0f} MB, and the limit is {MOST / 1e6:.0f} MB")
    return name, content


def head_html(description: Description) -> str:
    """Returns the title, the warning, and the key facts of the card."""
    found, network = description.evaluation, description.network
    title = f"{found.get('defense') or 'classifier'}, {network['name']}"
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in facts_of(description).items()
    )
    return (
        f'<h1 class="title">{escape(title)}</h1>'
        '<p class="warning"><b>Not a medical device.</b> For research on adversarial robustness;'
        " it must not guide care. It names one of its classes for any image. Images stay in the"
        f' memory of this server, and are not written.</p><dl class="facts">{facts}</dl>'
    )


def facts_of(description: Description) -> dict[str, str]:
    """Returns the key facts of the card: name -> value."""
    found, size = description.evaluation, description.image_size
    facts = {"classes": ", ".join(description.classes), "input": f"{size} × {size} pixels"}
    if found.get("dataset"):
        facts["trained on"] = str(found["dataset"])
    for row in found.get("results", ()):
        kind = (row["threat_model"], row["evaluation"])
        value = f"{row['accuracy']:.1%} ({row['low']:.1%} to {row['high']:.1%}, n = {row['n']})"
        if kind == ("none", "clean"):
            facts["clean accuracy"] = value
        elif kind == ("adaptive", "worst"):
            facts[f"under adaptive attacks, ε = {row['epsilon']:g}"] = value
    checks = found.get("self_checks")
    facts["self-checks"] = checks["headline"] if checks else "not run"
    return facts


def view_html(view: View) -> str:
    """Returns the pictures and the verdicts of the detectors."""
    figures = "".join(
        f'<figure><img src="{data_url(picture)}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for caption, picture in view.pictures.items()
    )
    return f'<div class="pictures">{figures}</div>{_detectors(view.detectors)}'


def _detectors(found: Mapping[str, tuple[float, float | None, bool]]) -> str:
    rows = ""
    for name, (score, limit, flagged) in found.items():
        verdict = "not calibrated" if limit is None else "flagged" if flagged else "passes"
        shown = "–" if limit is None else f"{limit:.4g}"
        rows += f'<tr class="{verdict}"><td>{escape(name)}</td><td>{score:.4g}</td>'
        rows += f"<td>{shown}</td><td><b>{verdict}</b></td></tr>"
    head = "<tr><th>Detector of attacks</th><th>score</th><th>threshold</th><th>verdict</th></tr>"
    return f'<table class="detectors">{head}{rows}</table>'


def note(text: str, bad: bool = False) -> str:
    """Returns one line of text."""
    return f'<p class="note{" bad" if bad else ""}" role="status">{escape(text)}</p>'


def data_url(picture: Image.Image) -> str:
    """Returns a picture as text, enlarged by a whole factor if it is small."""
    factor = max(1, -(-_SHOWN // picture.width))
    size = (factor * picture.width, factor * picture.height)
    with io.BytesIO() as file:
        picture.resize(size, Image.Resampling.NEAREST).save(file, "PNG")
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def serve(model: Model, host: str, port: int) -> None:
    """Serves the page until the process is stopped.

    Args:
      model: what answers.
      host: address to listen at; 127.0.0.1: this machine alone.
      port: 0: any free one.

    Raises:
      UserError: Gradio is missing, or the address cannot be listened at.
    """
    port = _free_port(host, port)
    page = make_page(model)
    import gradio
    from starlette.middleware import Middleware

    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    page.launch(
        server_name=host, server_port=port, share=False, quiet=True, inbrowser=False,
        prevent_thread_lock=True, theme=theme, css=_asset("page.css"), footer_links=[],
        run_history=False, enable_monitoring=False, ssr_mode=False, pwa=False, mcp_server=False,
        app_kwargs={"middleware": [Middleware(Guard)]},
    )  # fmt: skip
    print(f"{page.local_url}  (Ctrl-C stops)", flush=True)
    threading.Event().wait()


def _free_port(host: str, port: int) -> int:
    """Returns the port, or any free one for 0; UserError if it cannot be listened at."""
    try:
        with socket.create_server((host, port)) as found:
            return found.getsockname()[1]
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"--host={host} --port={port}: {reason}; give another one") from error
