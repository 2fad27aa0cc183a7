"""A comparison is published as one run: its tables and pictures, in the group of its sweep."""

import json
import math
import os
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
from made_comparisons import comparison

from facelab.compare.publishing import exhibit, publish
from facelab.training.wandb_files import folders_of, last_step
from facelab.training.wandb_run import WandbRun, wandb_id


@pytest.fixture(scope="module")
def losses():
    points = [({"loss": "softmax"}, 0.93), ({"loss": "arcface"}, 0.96), ({"loss": "cosface"}, 0.95)]
    return comparison(points, warnings=("loss=cosface: seed 3 is missing",))


def columns_of(table, *names):
    places = [table.columns.index(name) for name in names]
    return [tuple(row[place] for place in places) for row in table.rows]


def test_its_tables_hold_every_cell_and_every_difference(losses):
    shown = exhibit(losses)
    assert not shown.final
    assert {key.split("/")[0] for key in shown.tables} == {"comparison"}
    assert {key.split("/")[0] for key in shown.pictures} == {"plots"}
    assert {"plots/intervals", "plots/det", "plots/history", "plots/cost"} <= shown.pictures.keys()
    assert all(p.dtype == np.uint8 and p.ndim == 3 and len(np.unique(p)) > 9 for p in shown.pictures.values())
    cells = {
        (row.label, c.key): losses.cells[i][j]
        for i, row in enumerate(losses.rows)
        for j, c in enumerate(losses.columns)
    }
    assert shown.numbers == {f"{row}/{key}": cell.mean for (row, key), cell in cells.items()}
    results = columns_of(shown.tables["comparison/results"], "row", "loss", "column", "mean", "low", "high", "best")
    assert {(row, key): (mean, low, high) for row, _, key, mean, low, high, _ in results} == {
        place: (cell.mean, *cell.interval) for place, cell in cells.items()
    }
    assert {loss for _, loss, *_ in results} == {"softmax", "arcface", "cosface"}
    assert sum(best == "yes" for *_, best in results) == 3  # one in each column
    tests = columns_of(shown.tables["comparison/tests"], "row", "column", "to", "difference", "corrected")
    wanted = {(*place, "baseline"): c.baseline for place, c in cells.items()}
    wanted |= {(*place, "best"): c.to_best for place, c in cells.items()}
    assert {(row, key, to): (mean, p) for row, key, to, mean, p in tests} == {
        place: (one.mean, one.corrected) for place, one in wanted.items() if one is not None
    }
    assert len(shown.tables["comparison/runs"].rows) == len(losses.runs) == 9
    assert shown.tables["comparison/warnings"].rows == [("loss=cosface: seed 3 is missing",)]


def test_what_cannot_be_told_is_an_empty_cell():
    shown = exhibit(comparison([({"loss": "arcface"}, 0.9), ({"loss": "cosface"}, 0.91)], seeds=(None,), baseline=None))
    cells = [cell for table in shown.tables.values() for row in table.rows for cell in row]
    assert not any(isinstance(cell, float) and math.isnan(cell) for cell in cells)
    assert {seed for _, seed in columns_of(shown.tables["comparison/runs"], "row", "seed")} == {None}


def test_a_logger_that_fails_is_closed_and_the_failure_told(losses, tmp_path):
    closed = []

    class Broken:
        identity = None

        def __init__(self, **given):
            assert set(given) == {"run", "config", "group", "job", "job_type", "tags"}

        def follow(self, rows):
            raise OSError("gone")

        def finish(self, ended):
            closed.append(ended)

    with pytest.raises(OSError, match="gone"):
        publish(losses, Broken, tmp_path)
    assert closed == [False]


def test_it_is_one_run_of_its_sweeps_group(losses, tmp_path, monkeypatch, capsys):
    for name in [name for name in os.environ if name.startswith("WANDB") and name != "WANDB_SERVICE"]:
        monkeypatch.delenv(name)
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name.lower()))
    logger = partial(WandbRun, project="p", entity=None, mode="offline")
    identity = publish(losses, logger, tmp_path)
    assert identity == wandb_id("losses", "comparison of losses")
    (folder,) = folders_of(tmp_path / "comparison", identity)
    assert f"published as {identity}: wandb sync '{folder}'" in capsys.readouterr().out
    deadline = time.monotonic() + 60
    while last_step(folder) != 0:  # W&B's own process writes behind our back
        assert time.monotonic() < deadline
        time.sleep(0.1)
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.splitlines()
    (run,) = [record["run"] for record in map(json.loads, lines) if record["type"] == "run"]
    assert (run["run_group"], run["job_type"], run["display_name"]) == ("losses", "compare", "comparison of losses")
    assert run["config"]["update"]["baseline"] == "loss=softmax"
    said = subprocess.run([*command[:-1], "--summary", str(folder)], capture_output=True, text=True, check=True)
    summary = json.loads(said.stdout)["summary"]
    assert summary["loss=arcface/lfw/accuracy"] == pytest.approx(losses.cells[1][0].mean)
    kinds = {key: value["_type"] for key, value in summary.items() if isinstance(value, dict) and "_type" in value}
    wanted = {f"comparison/{key}": "table-file" for key in ("results", "tests", "cost", "runs", "warnings")}
    wanted |= {f"plots/{key}": "image-file" for key in ("intervals", "det", "history", "cost")}
    assert wanted.items() <= kinds.items()
