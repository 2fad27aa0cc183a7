"""Each picture comes where there is something to show, says what the numbers say, and covers nothing."""

import dataclasses
import itertools

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_comparisons import column, comparison, grid, losses, resolutions
from matplotlib.backends.backend_agg import FigureCanvasAgg

from facelab.compare import amounts, curves, dependence, looks
from facelab.compare.pictures import PICTURES, save, settings
from facelab.compare.results import Scores

PAIRS = [column(), column("agedb_30")]


@pytest.fixture(autouse=True)
def _look():
    with settings():
        yield


def names(compared):
    return {picture.name for picture in PICTURES if picture.draw(compared) is not None}


def texts(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_a_picture_is_there_where_the_runs_have_something_to_show_in_it():
    alone = comparison([({}, 0.95)], seeds=(1,), baseline=None)
    assert names(alone) == {"intervals", "det", "history"}
    assert names(losses(seeds=(1, 2))) == {"intervals", "det", "history", "cost"}
    assert names(grid(columns=PAIRS)) == {"intervals", "det", "history", "heat", "sensitivity", "cost"}
    assert "resolution" in names(resolutions())


def test_runs_without_curves_history_or_costs_have_no_such_pictures():
    compared = comparison([({"loss": "arcface"}, 0.95), ({"loss": "cosface"}, 0.94)])
    rows = []
    for row in compared.rows:
        runs = tuple(dataclasses.replace(run, scores={}, history={}) for run in row.runs)
        rows.append(dataclasses.replace(row, runs=runs))
    assert names(dataclasses.replace(compared, rows=tuple(rows), cost_key="")) == {"intervals"}
    nothing = tuple((None,) * len(compared.columns) for _ in rows)
    assert names(dataclasses.replace(compared, rows=tuple(rows), cells=nothing)) == set()


def test_degraded_training_has_a_resolution_curve_and_is_no_sensitivity():
    points = [
        ({"distill": who, "data.degrade.sizes": sizes}, 0.8 + 0.002 * sizes[0])
        for who, sizes in itertools.product(("none", "askd"), ([14], [28], [56]))
    ]
    figure = dependence.resolution(comparison(points, columns=[column()]))
    (axes,) = figure.axes
    lines = {len(line.get_xdata()): line.get_xdata() for line in axes.lines}
    np.testing.assert_array_equal(lines[3], [14, 28, 56])
    assert texts(figure) == ["none", "askd"]
    several = comparison([({"data.degrade.sizes": [14, 28]}, 0.9), ({"data.degrade.sizes": [56]}, 0.9)], [column()])
    assert dependence.resolution(several) is None


# Numbers


def a_curve(genuine, impostor):
    threshold = np.unique([*genuine, *impostor])[::-1]
    fmr = np.array([np.mean(np.array(impostor) >= t) for t in threshold])
    fnmr = np.array([np.mean(np.array(genuine) < t) for t in threshold])
    return Scores("lfw", "pairs", {}, {}, {}, "", False, fmr, fnmr, np.empty(0), None)


few = st.lists(st.integers(0, 12), min_size=1, max_size=9)


@given(few, few, st.floats(0, 1))
def test_the_error_at_a_false_match_rate_is_the_best_that_a_threshold_reaches(genuine, impostor, rate):
    allowed = [t for t in (*genuine, *impostor) if np.mean(np.array(impostor) >= t) <= rate]
    best = min((np.mean(np.array(genuine) < t) for t in allowed), default=1)
    assert curves.fnmr_at(a_curve(genuine, impostor), np.array([rate]))[0] == best


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5)), min_size=1, max_size=8), st.booleans())
def test_the_front_is_what_nobody_beats(points, error):
    paid, values = np.array(points, dtype=float).T
    good = -values if error else values

    def beaten(i):
        return any(
            p <= paid[i] and g >= good[i] and (p < paid[i] or g > good[i]) for p, g in zip(paid, good, strict=True)
        )

    found = amounts.front(paid, values, error)
    assert sorted(found) == [i for i in range(len(points)) if not beaten(i)]
    assert np.all(np.diff(paid[found]) >= 0)


def test_the_front_that_is_drawn_is_that_of_the_table():
    compared = losses(seeds=(1, 2))
    axes = amounts.cost(compared).axes[0]
    step = next(line for line in axes.lines if line.get_drawstyle() == "steps-post")
    on_front = sorted(row.cost.device_hours for row in compared.rows if row.frontier)
    assert len(on_front) > 1
    np.testing.assert_array_equal(step.get_xdata(), on_front)


def test_seeds_are_averaged_where_both_were_validated():
    rows = comparison([({}, 0.9)], columns=[column()], seeds=(1, 2)).rows[0].runs
    one, other = (
        dataclasses.replace(run, history={"images": np.array(x), "val/accuracy": np.array(y)})
        for run, x, y in zip(
            rows, ([100.0, 200, 300, 400], [100.0, 300]), ([0.5, 0.6, 0.7, 0.8], [0.5, 0.9]), strict=True
        )
    )
    x, mean, low, high = curves.mean_curve([one, other], "val/accuracy")
    np.testing.assert_array_equal(x, [100, 200, 300])
    np.testing.assert_allclose(mean, [0.5, 0.65, 0.8])
    np.testing.assert_allclose(low, [0.5, 0.6, 0.7])
    np.testing.assert_allclose(high, [0.5, 0.7, 0.9])
    assert len(curves.mean_curve([one], "val/top1")[0]) == 0


def test_an_error_rates_best_cell_is_its_lowest():
    compared = grid(columns=[column(metric="eer")])
    axes = dependence.heat(compared).axes[0]
    (frame,) = [patch for patch in axes.patches if not patch.get_fill()]
    place = np.round([frame.get_x() + frame.get_width() / 2, frame.get_y() + frame.get_height() / 2])
    (best,) = [text for text in axes.texts if np.array_equal(text.get_position(), place)]
    means = [cells[0].mean for cells in compared.cells]
    row = compared.rows[int(np.argmin(means))]
    assert float(best.get_text()) == round(100 * min(means), 2)
    x, y = (
        label.get_text() for label in (axes.get_xticklabels()[int(place[0])], axes.get_yticklabels()[int(place[1])])
    )
    assert (float(x), float(y)) == (row.choices["loss.margin"], row.choices["loss.scale"])


def test_intervals_of_two_seeds_do_not_make_all_dots_one():
    compared = grid(columns=[column()], seeds=(1, 2), spread=0.02)
    means = 100 * np.array([cells[0].mean for cells in compared.cells])
    widest = max(100 * (high - low) for cells in compared.cells for low, high in [cells[0].interval])
    low, high = amounts.intervals(compared).axes[0].get_xlim()
    assert low < means.min() < means.max() < high
    assert widest > 3 * (high - low) / 2


# Looks


def test_thirteen_rows_differ_even_without_colours_and_keep_their_look():
    compared = losses(columns=PAIRS, seeds=(1,))
    shown = looks.looks(compared)
    assert list(shown) == list(range(13))
    assert len({(one.color, str(one.dashes)) for one in shown.values()}) == 13
    assert len({(one.color, one.marker) for one in shown.values()}) == 13
    expected = [row.choices["loss"] for row in compared.rows]
    for figure in (curves.det(compared), curves.history(compared), amounts.cost(compared)):
        assert texts(figure) == expected
    drawn = curves.history(compared).axes[0].lines
    assert {line.get_color() for line in drawn} == {one.color for one in shown.values()}


def test_of_many_rows_the_best_and_the_baseline_have_names():
    points = [({"loss.margin": round(0.01 * i, 2)}, 0.9 + 0.001 * i) for i in range(30)]
    compared = comparison(points, columns=[column()], seeds=(1,), baseline=0, spread=0)
    assert list(looks.looks(compared)) == [0, *range(18, 30)]
    assert texts(amounts.cost(compared))[-1] == "17 others"


def test_names_are_words_and_all_different():
    odd = ["_hidden", "$x^2", "a" * 60 + "1" + "b" * 60, "a" * 60 + "2" + "b" * 60, "<b>&"]
    compared = comparison([({"loss": word}, 0.95) for word in odd], columns=[column()], seeds=(1,))
    labels = looks.names(compared)
    assert labels[:2] == ["_hidden", "$x^2"]
    assert len(set(labels)) == 5
    assert max(map(len, labels)) < 45
    figure = curves.det(compared)
    FigureCanvasAgg(figure).draw()  # a formula would fail here
    assert texts(figure) == labels


@pytest.mark.parametrize(("make", "draw"), [(losses, curves.det), (grid, amounts.cost), (grid, dependence.sensitivity)])
def test_names_cover_no_panel_and_stay_on_the_picture(make, draw):
    figure = draw(make(columns=PAIRS, seeds=(1, 2)))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    assert legends
    for legend in legends:
        box = legend.get_window_extent()
        inner = [axes.get_window_extent() for axes in figure.axes]
        assert not any(box.overlaps(panel) for panel in inner)
        assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1


def test_row_names_of_many_rows_do_not_run_into_each_other():
    figure = amounts.intervals(grid(columns=PAIRS, seeds=(1, 2)))
    FigureCanvasAgg(figure).draw()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert len(boxes) == 25
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert min(box.x0 for box in boxes) >= 0


def test_pictures_become_files(tmp_path):
    compared = comparison([({}, 0.95)], columns=[column()], seeds=(1,), baseline=None)
    paths = save(compared, tmp_path / "new", ("png",))
    assert [path.name for path in paths] == ["intervals.png", "det.png", "history.png"]
    assert sorted((tmp_path / "new").iterdir()) == sorted(paths)
    image = cv2.imread(str(tmp_path / "new" / "det.png"))
    assert image.shape[1] > 600
    assert image.min() < 100 < image.max()
