"""The page in a real browser: it asks for nothing, complains of nothing, and its table has the right numbers."""

import re
import shutil

import pytest
from made_comparisons import column, comparison, losses

from facelab.compare.page import page
from facelab.compare.tables import BEST, CLOSE, SIGNIFICANT

PATIENCE = 120_000  # ms: for a machine that has other work
HOSTILE = "<script>throw 1</script><img src=https://example.org/x.png onerror=alert(1)>&\"'_$x$"
WARNINGS = (f"{HOSTILE} is unfinished", "runs differ in trainer.batch_size, which was not swept")


@pytest.fixture(scope="module")
def compared():
    points = [({"loss": loss}, accuracy) for loss, accuracy in (("arcface", 0.95), (HOSTILE, 0.93), ("zface", 0.97))]
    columns = [column(), column(metric="eer"), column("agedb_30")]
    return comparison(points, columns=columns, seeds=(1, 2, 3), baseline=1, spread=0.001, warnings=WARNINGS)


@pytest.fixture(scope="module")
def browser():
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("there is no chromium on this machine: the page is not looked at in a browser")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as driver:
        started = driver.chromium.launch(
            executable_path=executable, args=["--no-sandbox", "--disable-gpu"], timeout=PATIENCE
        )
        yield started
        started.close()


@pytest.fixture
def opened(browser, compared, tmp_path):
    """The page, what the browser said of it, and what it asked for."""
    (tmp_path / "compare.html").write_text(page(compared), encoding="utf-8")
    said, asked = [], []
    context = browser.new_context(color_scheme="dark", viewport={"width": 1100, "height": 900})
    context.set_default_timeout(PATIENCE)
    tab = context.new_page()
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto((tmp_path / "compare.html").as_uri(), timeout=PATIENCE)
    yield tab, said, asked
    context.close()


def rows_of(tab, table):
    script = "table => [...table.tBodies[0].rows].map(row => [...row.cells].map(cell => cell.innerText))"
    return tab.eval_on_selector(f"#{table}", script)


def test_in_a_browser(opened, compared, tmp_path):
    """One visit, as starting a browser is what takes time."""
    tab, said, asked = opened
    rows = rows_of(tab, "results")
    # Every cell is what the comparison holds.
    assert len(rows) == 3
    for row, cells, words in zip(compared.rows, compared.cells, rows, strict=True):
        assert words[0].split("\n")[0] == row.label
        assert words[1] == "3"
        for cell, text in zip(cells, words[2:], strict=True):
            sign = BEST if cell.best else CLOSE if cell.close else ""
            digits = float(re.search(r"[\d.]+", text)[0])
            assert text.startswith(sign)
            assert digits == pytest.approx(100 * cell.mean, abs=0.0051)
            if cell.baseline is not None:
                below = text.split("\n")[1]
                told = float(re.match(r"[+−][\d.]+", below)[0].replace("−", "-"))
                assert told == pytest.approx(100 * cell.baseline.mean, abs=0.0051)
                assert below.endswith(SIGNIFICANT) == cell.baseline.significant
    assert rows[1][0].endswith("baseline")
    # Warnings come before all else, as words.
    first = tab.locator("section").first
    assert first.get_attribute("class") == "warnings"
    assert first.locator("li").all_inner_texts() == list(WARNINGS)
    # A click sorts, accuracy from the best, errors from the lowest; a second one turns it round.
    by = [float(re.search(r"[\d.]+", row[2])[0]) for row in rows]
    tab.locator("#results thead button").nth(2).click()
    assert [float(re.search(r"[\d.]+", row[2])[0]) for row in rows_of(tab, "results")] == sorted(by, reverse=True)
    tab.locator("#results thead button").nth(3).click()
    errors = [float(re.search(r"[\d.]+", row[3])[0]) for row in rows_of(tab, "results")]
    assert errors == sorted(errors)
    assert tab.locator("#results thead th").nth(3).get_attribute("aria-sort") == "ascending"
    tab.locator("#results thead button").nth(3).click()
    assert [float(re.search(r"[\d.]+", row[3])[0]) for row in rows_of(tab, "results")] == errors[::-1]
    # Pictures are on the page, within its width; their words too.
    assert tab.locator("figure svg").count() == 4
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert tab.locator("figure svg text", has_text="false match rate, %").count() == 2
    # Two pictures never share an identifier, or a clip of one would cut the other.
    assert tab.evaluate("new Set([...document.querySelectorAll('svg [id]')].map(e => e.id)).size") == tab.evaluate(
        "document.querySelectorAll('svg [id]').length"
    )
    # Dark as the reader asks, pictures too; print is light, and everything opens.
    ink = "getComputedStyle(document.querySelector('figure svg text')).fill"
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 28)"
    assert tab.evaluate(ink) == "rgb(233, 233, 231)"
    tab.emulate_media(media="print")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.evaluate(ink) == "rgb(26, 26, 26)"
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.locator("details:not([open])").count() == 0
    assert said == []
    assert asked == [(tmp_path / "compare.html").as_uri()]


def test_what_is_hostile_is_words():
    text = page(comparison([({"loss": HOSTILE}, 0.95)], columns=[column()], seeds=(1,), warnings=WARNINGS))
    assert text.count("<script") == 1
    assert "<img" not in text
    assert not re.search(r'(src|href)="(?!#|data:,)', text)
    assert "url(" not in re.sub(r"url\(#", "", text)


def test_the_same_comparison_gives_the_same_page():
    made = comparison([({"loss": "arcface"}, 0.95), ({"loss": "cosface"}, 0.94)], columns=[column()], seeds=(1,))
    assert page(made) == page(made)


def test_numbers_that_nobody_knows_are_dashes():
    compared = comparison([({"loss": "arcface"}, 0.95), ({"loss": "cosface"}, 0.94)], columns=[column()], seeds=(1,))
    text = page(compared)
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL).lower().replace("dominant", "")
    assert '<td data-v="">–</td>' in text


def test_two_hundred_rows_stay_small():
    """Half as many benchmarks as the promise has, and half of its size."""
    points = [({"loss": "arcface", "loss.margin": round(0.001 * i, 3)}, 0.95 + 1e-4 * i) for i in range(200)]
    compared = comparison(
        points, columns=[column(), column("agedb_30"), column("calfw")], seeds=(1,), points_of_det=200
    )
    assert len(page(compared).encode()) < 2.5e6


def test_thirteen_losses_have_all_their_differences():
    text = page(losses(columns=[column()], seeds=(1, 2)))
    for table, lines in (("results", 13), ("intervals", 13), ("to-baseline", 12), ("to-best", 12), ("runs", 26)):
        body = re.search(rf'<table id="{table}">.*?<tbody>(.*?)</tbody>', text, flags=re.DOTALL)[1]
        assert body.count("<tr>") == lines
