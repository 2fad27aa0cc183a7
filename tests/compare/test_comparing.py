"""The numbers are scipy's, the bootstrap that of the pairs, the warnings true; planted differences are found."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from fake_runs import draw_pairs, make_run, make_sweep
from scipy import stats

from facelab.benchmark.scores import load_scores
from facelab.compare.comparing import Rules, compare
from facelab.compare.cost import frontier
from facelab.compare.results import Cell, Cost, Row
from facelab.compare.statistics import holm

RULES = Rules(level=0.95, replicates=120, seed=0)
SETS = [draw_pairs("lfw", pairs=400, people=100), draw_pairs("calfw", pairs=200, people=60)]


def compared(*folders, baseline=None, metrics=None, keys=None, rules=RULES):
    return compare(folders, baseline=baseline, metrics=metrics, keys=keys, rules=rules)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    skills = {"arcface": 0.5, "cosface": 0.5, "softmax": 0.25}
    return make_sweep(folder, skills, seeds=(1, 2, 3, 4), sets=SETS, spread=0.003)


@pytest.fixture(scope="module")
def table(sweep):
    return compared(sweep, baseline="softmax")


def test_the_table_is_rows_by_benchmarks(table):
    assert table.keys == ("loss",)
    assert [row.label for row in table.rows] == ["loss=arcface", "loss=cosface", "loss=softmax"]
    assert [column.key for column in table.columns] == ["lfw/accuracy", "calfw/accuracy"]
    assert [column.unit for column in table.columns] == ["subjects"] * 2
    assert all(row.seeds == (1, 2, 3, 4) and row.missing == () for row in table.rows)
    assert table.warnings == ()
    assert len(table.runs) == 12


def test_cells_are_scipys(table):
    for row, cells in zip(table.rows, table.cells, strict=True):
        for column, cell in zip(table.columns, cells, strict=True):
            values = [
                load_scores(run.path / "scores" / f"{column.benchmark}.npz").metrics[column.key] for run in row.runs
            ]
            assert list(cell.values.values()) == values
            assert cell.std == pytest.approx(np.std(values, ddof=1))
            steps = 1 / column.stamp["pairs"] / np.sqrt(12)
            error = max(np.std(values, ddof=1), steps) / 2
            assert cell.interval == pytest.approx(stats.t.interval(0.95, 3, np.mean(values), error), rel=1e-9)


def test_differences_are_scipys_paired_tests_and_holms(table):
    everything = []
    for number, column in enumerate(table.columns):
        base = np.array(list(table.cells[2][number].values.values()))
        assert table.cells[2][number].baseline is None
        for row in (0, 1):
            held = table.cells[row][number].baseline
            values = np.array(list(table.cells[row][number].values.values()))
            if np.std(values - base, ddof=1) > 1 / column.stamp["pairs"] / np.sqrt(6):
                expected = stats.ttest_rel(values, base)
                assert held.p == pytest.approx(expected.pvalue, rel=1e-7)
                assert held.interval == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-7)
            assert held.test == "seeds"
            assert held.count == 4
            everything.append(held)
    assert table.comparisons == len(everything) == 4
    assert [held.corrected for held in everything] == pytest.approx(holm([held.p for held in everything]))
    assert all(held.significant == (held.corrected < 0.05) for held in everything)


def test_a_planted_difference_is_found_and_equals_are_not_told_apart(table):
    cells = table.column(0)
    assert all(cells[row].baseline.significant and cells[row].baseline.mean > 0.03 for row in (0, 1))
    best = int(np.argmax([cell.mean for cell in cells]))
    assert best in (0, 1)
    assert cells[best].best
    assert cells[best].close
    assert cells[best].to_best is None
    assert cells[1 - best].close
    assert not cells[2].close
    assert cells[0].baseline.needed <= 4
    low, high = cells[0].baseline.subjects
    assert 0 < low < cells[0].baseline.mean < high


def test_the_people_of_a_benchmark_are_drawn_for_all_rows_at_once(table, sweep):
    """Brute force: the same draws, one replicate and one pair after the other."""
    rng, people = np.random.default_rng(0), np.unique(SETS[0].people)
    weights = [np.bincount(rng.integers(len(people), size=len(people)), minlength=len(people)) for _ in range(120)]
    numbers, places = {}, np.searchsorted(people, SETS[0].people)
    for row in (0, 2):
        right = []
        for run in table.rows[row].runs:
            stored = load_scores(run.path / "scores" / "lfw.npz")
            trials = run.scores["lfw"].trials
            right.append(trials.value)
            assert trials.value.mean() == pytest.approx(stored.metrics["lfw/accuracy"], abs=1e-6)
        numbers[row] = [[], np.mean(right, axis=0)]
    for weight in weights:
        for kept, right in numbers.values():
            parts = []
            for same in (True, False):
                hits = total = 0.0
                of = SETS[0].same == same
                for (i, j), value in zip(places[of], right[of], strict=True):
                    times = weight[i] if same else weight[i] * weight[j]
                    hits, total = hits + times * value, total + times
                parts.append(hits / total)
            kept.append(np.mean(parts))
    drawn = np.array(numbers[0][0]) - numbers[2][0]
    assert table.cells[0][0].baseline.subjects == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=1e-5)
    assert table.cells[0][0].subjects == pytest.approx(tuple(np.quantile(numbers[0][0], [0.025, 0.975])), abs=1e-5)


def test_single_runs_are_tested_over_people(tmp_path):
    folder = make_sweep(tmp_path, {"arcface": 0.6, "softmax": 0.2}, seeds=(1,), sets=SETS[:1])
    table = compared(folder, baseline="softmax")
    held = table.cells[0][0].baseline
    assert held.test == "subjects"
    assert held.significant
    assert np.isnan([held.std, *held.interval, held.needed]).all()
    assert np.isnan(table.cells[0][0].std)
    assert any("every row has a single run" in warning for warning in table.warnings)
    none = compared(folder, baseline="softmax", rules=Rules(0.95, 0, 0)).cells[0][0]
    assert none.baseline.test == ""
    assert not none.baseline.significant
    assert not none.close or none.best


def test_other_numbers_than_the_main_ones_and_lower_is_better(sweep):
    table = compared(sweep, metrics=["lfw/eer", "lfw/tar@far=1e-3"])
    eer, tar = table.columns
    assert (eer.error, tar.error) == (True, False)
    assert (eer.unit, eer.share) == ("", True)
    cells = table.column(0)
    assert cells[int(np.argmin([cell.mean for cell in cells]))].best
    assert not cells[2].best
    assert table.cells[0][1].notes == ("zero false accepts, N=200",)
    with pytest.raises(ValueError, match=r"'lfw/acc', which no run reports: did you mean .*lfw/accuracy"):
        compared(sweep, metrics=["lfw/acc"])


def test_unequal_protocols_are_refused_with_what_differs(tmp_path):
    make_run(tmp_path, {}, sets=SETS[:1])
    folder = make_run(tmp_path, {"loss": "cosface"}, sets=SETS[:1], stamp={"mirror": False}).parent
    with pytest.raises(ValueError, match=r"lfw was measured by different protocols .*mirror: False / True.*metrics="):
        compared(folder)
    assert compared(folder, metrics=["val/accuracy"]).columns[0].benchmark == "val"


def test_unfinished_runs_and_missing_seeds_are_told(tmp_path):
    make_sweep(tmp_path, {"arcface": 0.5}, seeds=(1, 2), sets=SETS[:1])
    make_run(tmp_path, {"loss": "cosface"}, 1, sets=SETS)
    make_run(tmp_path, {"loss": "cosface"}, 3, finished=False)
    (tmp_path / "losses" / "empty").mkdir()
    table = compared(tmp_path / "losses")
    told = "\n".join(table.warnings)
    assert "loss=cosface,seed=3 is unfinished after 32,000 images and left out" in told
    assert "loss=cosface lacks seeds 2, 3" in told
    assert "loss=arcface lacks seed 3" in told
    assert "calfw/accuracy was not measured of loss=arcface" in told
    assert table.cells[0][1] is None
    assert [path.name for path, _ in table.unread] == ["empty"]
    held = next(cell for cell in table.column(0) if not cell.best).to_best
    assert held.count == 1


def test_what_makes_runs_unequal_is_told(tmp_path):
    few = [draw_pairs(pairs=100)]
    for margin in (0.3, 0.4):
        make_run(tmp_path, {"loss.margin": margin}, sets=few, devices=8, people=False)
    make_run(tmp_path, {"loss": "cosface"}, sets=few, gpu=None, devices=1, people=False)
    cosface = tmp_path / "losses" / "loss=cosface,seed=1"
    about = json.loads((cosface / "environment.json").read_text())
    about["git"]["commit"] = "1" * 40
    (cosface / "environment.json").write_text(json.dumps(about))
    text = (cosface / "config.yaml").read_text().replace("epochs: 5", "epochs: 7")
    (cosface / "config.yaml").write_text(text)
    told = "\n".join(compared(tmp_path / "losses").warnings)
    assert "runs differ in trainer.epochs (" in told
    assert "unequal tuning budgets, settings of each loss: arcface 2, cosface 1" in told
    assert "batch norm saw batches of different sizes" in told
    assert "different machines (CPU, NVIDIA H100)" in told
    assert "2 commits of facelab (0000000000, 1111111111)" in told
    assert "lfw: its score files do not say whose images a pair has" in told


@pytest.mark.parametrize("word", ["softmax", "loss=softmax", " loss=softmax"])
def test_a_baseline_is_found_by_value_and_label(sweep, word):
    assert compared(sweep, baseline=word, rules=Rules(0.95, 0, 0)).baseline == 2


def test_a_baseline_that_is_none_or_several_is_refused(sweep, tmp_path):
    with pytest.raises(ValueError, match=r"baseline=triplet: no row is that; give one of: loss=arcface; loss=cosface"):
        compared(sweep, baseline="triplet")
    points = [({"loss": loss, "loss.margin": m}, 0.4) for loss in ("arcface", "cosface") for m in (0.3, 0.4)]
    grid = make_sweep(tmp_path, points, seeds=(1,), sets=[draw_pairs(pairs=100)])
    with pytest.raises(ValueError, match=r"baseline=cosface: 2 rows are that"):
        compared(grid, baseline="cosface")
    assert compared(grid, baseline="loss=cosface, loss.margin=0.4").baseline == 3
    assert compared(grid, baseline="0.3,cosface").baseline == 2


def test_a_numeric_choice_has_a_line_for_each_of_the_others(tmp_path):
    points = [
        ({"loss": loss, "loss.margin": m}, 0.3 + m) for loss, m in product(("arcface", "cosface"), (0.3, 0.1, 0.2))
    ]
    table = compared(make_sweep(tmp_path, points, seeds=(1, 2), sets=[draw_pairs(pairs=100)]))
    (found,) = table.sensitivities
    assert (found.key, found.column) == ("loss.margin", 0)
    assert [line.others for line in found.lines] == ["loss=arcface", "loss=cosface"]
    for line in found.lines:
        assert line.x.tolist() == [0.1, 0.2, 0.3]
        assert line.mean.tolist() == [table.cells[row][0].mean for row in line.rows]
        assert (line.low <= line.mean).all()


def test_the_pareto_front_is_what_nobody_beats(table):
    rng = np.random.default_rng(0)
    for error in (False, True):
        column = replace(table.columns[0], error=error)
        means, hours = rng.integers(0, 5, size=12) / 5, rng.integers(1, 5, size=12)
        rows = [Row("", {}, (), (), Cost(1, h, "GPU", 1, 1, 1), False) for h in hours]
        cells = [[Cell({1: m}, m, 0, (0, 0), (0, 0), None, None, False, False)] for m in means]
        key, front = frontier(rows, cells, column)
        assert key == "device_hours"
        gain = -means if error else means
        for i in range(12):
            beaten = any(gain[j] >= gain[i] and hours[j] <= hours[i] and (gain[j], -hours[j]) != (gain[i], -hours[i])
                         for j in range(12))  # fmt: skip
            assert front[i] != beaten
    mixed = [replace(row, cost=replace(row.cost, device=f"GPU {i % 2}")) for i, row in enumerate(rows)]
    assert frontier(mixed, cells, column)[0] == "parameters"
    unknown = [replace(row, cost=Cost(np.nan, np.nan, "", 1, np.nan, np.nan)) for row in rows]
    assert frontier(unknown, cells, column) == ("", [False] * 12)


@pytest.mark.parametrize("rules", [(0.3, 1000, 0), (1.0, 1000, 0), (0.95, 10, 0)])
def test_settings_out_of_range(rules):
    with pytest.raises(ValueError, match=r"level=|replicates="):
        Rules(*rules)


def test_no_torch_is_needed(sweep):
    code = "import sys\nfrom facelab.compare.comparing import Rules, compare\n"
    code += "from facelab.compare.formats import renderer\n"
    code += "t = compare(sys.argv[1:], baseline=None, metrics=None, keys=None, rules=Rules(0.95, 100, 0))\n"
    code += "renderer('terminal')(t)\nprint([n for n in ('torch', 'matplotlib', 'wandb') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code, str(sweep)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
