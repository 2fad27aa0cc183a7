"""The page works in a real browser, and neither it nor its server asks anybody else for anything."""

import shutil
import sys

import numpy as np
import pytest
from recognising import faces, recogniser

from facelab.configuration import defaults
from facelab.demo import page as pages
from facelab.verify.gallery import calibrate, make

SECONDS = 300  # for whatever a browser does, on a machine that is busy with other things
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def choices(**given):
    return {**defaults("detection", "recognition", "demo"), "model": "model.onnx", **given}


def gallery_of(model, folder):
    files = sorted(folder.rglob("*.png"))
    names = sorted({file.parent.name for file in files})
    person = np.array([names.index(file.parent.name) for file in files])
    rows = model.embed(files)
    made = make(names, rows, person, {}, "exact")
    object.__setattr__(made, "strangers", calibrate(made, rows, person, None)[0])
    made.stamp["searches"] = "its own images"
    return made


def test_without_gradio_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ValueError, match=r"the page needs Gradio: pip install 'facelab\[demo\]'"):
        pages._gradio()


def test_a_wrong_choice_is_told_before_a_page_is_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "open_recogniser", lambda config: recogniser(tmp_path))
    with pytest.raises(ValueError, match="has no thresholds with it"):
        pages.serve(choices())
    with pytest.raises(FileNotFoundError, match="gallery=none: no such file"):
        pages.serve(choices(gallery="none"))


def test_in_a_browser(tmp_path, monkeypatch):
    pytest.importorskip("gradio", reason="needs Gradio: pip install 'facelab[demo]'")
    play = pytest.importorskip("playwright.sync_api", reason="needs playwright, to drive a browser")
    if CHROMIUM is None:
        pytest.skip("needs a Chromium on the path")
    folder = faces(tmp_path / "f", people=4, images=3)
    model = recogniser(tmp_path)
    gallery = gallery_of(model, folder)
    monkeypatch.setattr(pages, "open_recogniser", lambda config: model)
    monkeypatch.setattr(pages, "check_model", lambda *_: None)
    monkeypatch.setattr(pages.Gallery, "load", staticmethod(lambda path: gallery))
    page = pages.serve(choices(threshold=0.999, gallery="staff.gallery", fpir=0.5, top=2), block=False)
    asked, said = [], []
    try:
        with play.sync_playwright() as player:
            browser = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            tab = browser.new_page(viewport={"width": 1000, "height": 1300})
            tab.set_default_timeout(SECONDS * 1000)
            tab.on("request", lambda request: asked.append(request.url))
            tab.on("console", lambda message: said.append(message.text))
            answer = tab.goto(page.local_url)
            assert answer.headers["content-security-policy"] == pages.POLICY
            for place, file in (("one-photograph", "p0/0.png"), ("another-photograph", "p1/0.png")):
                put(tab, place, folder / file)
            tab.get_by_role("button", name="Compare").click()
            tab.get_by_text("different people: score").wait_for()
            tab.screenshot(path=tmp_path / "compared.png")
            tab.get_by_role("tab", name="Who is it?").click()
            put(tab, "photograph", folder / "p2" / "1.png")
            tab.get_by_role("button", name="Search 4 people").click()
            tab.get_by_role("heading", name="p2").wait_for()
            tab.screenshot(path=tmp_path / "searched.png")
            browser.close()
    finally:
        page.close()
    outside = [url for url in asked if not url.startswith((page.local_url, "data:", "blob:"))]
    assert len(asked) > 3
    assert outside == []
    assert [text for text in said if "Content Security Policy" in text] == []
    assert (tmp_path / "compared.png").stat().st_size > 10_000


def put(tab, place, file):
    """Uploads a file, and waits for its preview."""
    tab.locator(f"#{place} input[type=file]").set_input_files(file)
    tab.locator(f"#{place} img").first.wait_for()
