"""A small page with the same functions: two photographs compared, one searched for in a gallery, on this machine alone.

Gradio's telemetry is off, fonts are the browser's own, and a policy in the header of every answer keeps the browser
from asking anybody else.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np

from facelab.benchmark.pairs import short
from facelab.kinds import check_kind
from facelab.verify.gallery import Gallery
from facelab.verify.identification import check_model, limit
from facelab.verify.picture import draw
from facelab.verify.quality import brisque_or_none, quality_of
from facelab.verify.recogniser import Recogniser
from facelab.verify.verification import open_recogniser, operating_point

__all__ = ["POLICY", "build", "serve"]

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' data: blob:; worker-src 'self' blob:"
)
_LARGEST = "64mb"  # of a photograph that is uploaded


def serve(config: dict[str, Any], block: bool = True) -> Any:
    """Opens the page, until Ctrl-C.

    Args:
        config: conf/demo.yaml, plain values.
        block: false returns at once; the page is closed with `close()`.

    Returns:
        The page, whose `local_url` says where it is.

    Raises:
        ValueError, FileNotFoundError: something in it is wrong, or Gradio is not installed.
    """
    check_kind("port", config["port"], int | None)
    check_kind("gallery", config["gallery"], str | None)
    recogniser = open_recogniser(config)
    if recogniser.finder.detect != "none":
        recogniser.finder.prepare()
    gallery = None if config["gallery"] is None else Gallery.load(config["gallery"])
    if gallery is not None:
        check_model(recogniser, gallery, config["gallery"])
        limit(recogniser, gallery, config["fpir"], None)
    operating_point(recogniser, config)
    page = build(recogniser, gallery, config)
    from starlette.middleware import Middleware

    gradio = _gradio()
    page.launch(
        server_name="127.0.0.1", server_port=config["port"], share=False, quiet=True, show_error=False, ssr_mode=False,
        prevent_thread_lock=True, max_file_size=_LARGEST, footer_links=[], inbrowser=False,
        theme=gradio.themes.Base(font=["sans-serif"], font_mono=["monospace"]),
        app_kwargs={"middleware": [Middleware(_Policy)]},
    )  # fmt: skip
    print(f"open {page.local_url} in a browser of this machine; Ctrl-C ends it", flush=True)
    if block:
        page.block_thread()
    return page


def build(recogniser: Recogniser, gallery: Gallery | None, config: dict[str, Any]) -> Any:
    """The page.

    Args:
        recogniser: the model.
        gallery: of the second tab; None: there is none.
        config: `fmr`, `threshold`, `evaluation`, `fpir`: see conf/demo.yaml.

    Raises:
        ValueError: Gradio is not installed.
    """
    gradio = _gradio()
    point, measured_on = operating_point(recogniser, config)
    brisque = brisque_or_none()

    def compare(one: str | None, other: str | None) -> tuple[str, np.ndarray]:
        """A verdict in words, and its picture (H,W,3)."""
        with _told(gradio):
            faces = [recogniser.finder(_given(file)) for file in (one, other)]
            found = recogniser.judge(faces[0], faces[1], point)
            norms = recogniser.norms(np.stack([face.pixels for face in faces]))
            told = [None, None] if norms is None else norms.tolist()
            qualities = [quality_of(face, brisque, norm) for face, norm in zip(faces, told, strict=True)]
        canvas = draw(found, qualities, measured_on)
        canvas.draw()
        return f"## {found}", np.asarray(canvas.buffer_rgba())[..., :3]

    def search(photograph: str | None) -> tuple[str, list[list[Any]]]:
        """Who it is in words, and the candidates."""
        assert gallery is not None
        with _told(gradio):
            threshold, words = limit(recogniser, gallery, config["fpir"], None)
            found = gallery.search(recogniser.embed(_given(photograph)), min(config["top"], len(gallery.names)))
        rows = [
            [gallery.names[who], round(float(score), 4)]
            for score, who in zip(found.scores[0], found.people[0], strict=True)
        ]
        known = rows[0][0] if found.scores[0, 0] >= threshold else "nobody in the gallery"
        return f"## {known}\nthreshold {threshold:.4f}: {words}", rows

    with gradio.Blocks(title="facelab", analytics_enabled=False) as page:
        stated = "" if point is None or point.fmr != point.fmr else f" at FMR {short(point.fmr)}"
        gradio.Markdown(f"# facelab\n`{Path(recogniser.path).name}`{stated}. Photographs stay on this machine.")
        with gradio.Tab("Same person?"):
            with gradio.Row():
                pair = [_photograph(gradio, name) for name in ("one photograph", "another photograph")]
            button = gradio.Button("Compare", variant="primary")
            answer, picture = gradio.Markdown(), gradio.Image(show_label=False, interactive=False)
            button.click(compare, pair, [answer, picture])
        if gallery is not None:
            with gradio.Tab("Who is it?"):
                photograph = _photograph(gradio, "photograph")
                asked = gradio.Button(f"Search {len(gallery.names):,} people", variant="primary")
                name = gradio.Markdown()
                listed = gradio.Dataframe(headers=["person", "score"], interactive=False)
                asked.click(search, [photograph], [name, listed])
    return page


def _photograph(gradio: Any, label: str) -> Any:
    """A place for a file, which is handed on as it is: facelab reads it, with its own limits."""
    return gradio.Image(
        label=label, type="filepath", image_mode=None, sources=["upload", "clipboard"], height=260,
        elem_id=label.replace(" ", "-"),
    )  # fmt: skip


def _given(file: str | None) -> str:
    if file is None:
        raise ValueError("choose a photograph first")
    return file


class _told:
    """What is the user's to mend becomes a message on the page, with the photograph's name without its folder."""

    def __init__(self, gradio: Any):
        self.gradio = gradio

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (ValueError, OSError)):
            words = str(error)
            head, colon, rest = words.partition(": ")
            raise self.gradio.Error(f"{Path(head).name}{colon}{rest}", print_exception=False) from None


class _Policy:
    """Puts `POLICY` into the header of every answer."""

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def say(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, say)


def _gradio() -> Any:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import gradio
    except ImportError:
        raise ValueError("the page needs Gradio: pip install 'facelab[demo]'") from None
    return gradio
