"""The same numbers in every format, whatever letters a name has."""

import csv
import io
import re

import numpy as np
import pytest
from fake_runs import draw_pairs, make_run, make_sweep

from facelab.compare import tables
from facelab.compare.comparing import Rules, compare
from facelab.compare.formats import latex, markdown, renderer, suffix, terminal
from facelab.compare.results import Column

SHARE = Column("x/y", "x", "x y", False, True, {}, "", 0, None, "x")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder, few = tmp_path_factory.mktemp("tables"), [draw_pairs(pairs=200)]
    points = [({"loss": "cosface", "data.note": "한글_a|b"}, 0.6), ({"loss": "arcface", "data.note": "50%&"}, 0.2)]
    make_sweep(folder, points, seeds=(1, 2, 3), sets=few, spread=0.001)
    sweep = make_run(folder, {"data.note": "x"}, 1, 0.25, sets=few, memory=None).parent
    return compare([sweep], baseline="arcface,50%&", metrics=None, keys=None, rules=Rules(0.95, 200, 0))


def test_the_words_of_numbers():
    assert tables.number(0.97153, SHARE) == "97.15"
    assert tables.number(0.0042, SHARE, signed=True) == "+0.42"
    assert tables.number(np.nan, SHARE) == "–"
    assert tables.interval((-0.001, 0.002), SHARE, True) == "[-0.10, +0.20]"
    assert tables.interval((np.nan, np.nan), SHARE) == "–"
    assert [tables.p_value(p) for p in (1e-9, 0.012345, 0.4321, np.nan)] == ["<0.0001", "0.012", "0.43", "–"]
    assert [tables.seeds(n) for n in (4.0, np.inf, np.nan)] == ["4", ">1000", "–"]


def test_every_row_and_mark_stands_in_the_tables(table):
    results, differences, tests, costs = tables.tables(table)
    assert results.head == ("loss", "data.note", "seeds", "lfw accuracy %")
    best = [row[-1] for row in results.rows if row[-1].bold]
    assert len(best) == 1
    assert best[0].mark == tables.BEST
    assert [row[-1].text for row in differences.rows].count("baseline") == 1
    assert {row[-1].mark for row in differences.rows} == {"", tables.SIGNIFICANT}
    assert len(tests.rows) == 2
    assert [row[5].text for row in costs.rows].count("–") == 1  # a run that has not recorded its memory
    assert all(len(row) == len(one.head) for one in (results, differences, tests, costs) for row in one.rows)


def test_the_terminals_columns_stand_under_each_other(table):
    text = renderer("terminal")(table)
    block = text.split("\n\n")[1].splitlines()
    assert len(block) == 5
    assert len({terminal._width(line.rstrip("★≈ ").ljust(0)) for line in block[2:]}) <= 2
    column = {terminal._width(line[: re.search(r"\d\s+\d\d\.\d\d", line).start()]) for line in block[2:]}
    assert len(column) == 1, "wide letters are counted as two"
    assert "warnings" in text
    assert max(map(len, text.splitlines())) < 160
    assert "\x1b" not in text


def test_markdown_is_one_table_with_equal_columns(table):
    text = renderer("markdown")(table)
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [len(re.split(r"(?<!\\)\|", line)) for line in lines]
    assert cells[:5] == [6] * 5
    assert r"한글\_a\|b" in text
    assert re.search(r"\*\*\d+\.\d\d ± \d+\.\d\d\*\* ★", text)


def test_latex_escapes_all_that_it_would_read(table):
    text = renderer("latex")(table)
    assert r"한글\_a\textbar{}b" in text
    assert r"50\%\&" in text
    body = [line for line in text.splitlines() if not line.startswith("%")]
    assert not any(re.search(r"(?<!\\)[%#]|[±–★≈●]", line) for line in body)
    for line in body:
        if line.endswith(r"\\"):
            assert line.count(" & ") in (3, 2, 7, 10)
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == text.count(r"\toprule") == 4
    assert re.search(r"\\textbf\{\d+\.\d\d \$\\pm\$ \d+\.\d\d\}", text)
    assert latex.escaped(r"a\b{c}~^") == r"a\textbackslash{}b\{c\}\textasciitilde{}\textasciicircum{}"


def test_csv_holds_every_number_unrounded(table):
    rows = list(csv.DictReader(io.StringIO(renderer("csv")(table))))
    assert len(rows) == 3
    for row, cells in zip(rows, table.cells, strict=True):
        assert float(row["mean"]) == cells[0].mean
        assert row["best"] == str(cells[0].best)
        values = dict(part.split(":") for part in row["values"].split())
        assert [float(value) for value in values.values()] == list(cells[0].values.values())
        if cells[0].baseline is not None and cells[0].baseline.test:
            assert float(row["to_baseline_p"]) == cells[0].baseline.p
    single = next(row for row in rows if row["seeds"] == "1")
    assert single["std"] == ""


def test_markdown_letters():
    assert markdown.escaped("<b>*a*_[x](y)|") == r"\<b\>\*a\*\_\[x\](y)\|"


def test_a_format_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="write=pdf: choose csv, html, latex, markdown, terminal"):
        renderer("pdf")
    assert suffix("latex") == ".tex"
