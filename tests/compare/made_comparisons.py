"""Comparisons without runs on disk and without statistics: what pictures and pages are drawn from, as plain data."""

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np

from facelab.compare.results import (
    UNKNOWN,
    Cell,
    Column,
    Comparison,
    Cost,
    Difference,
    Line,
    Row,
    Run,
    Scores,
    Sensitivity,
)

T = {1: math.nan, 2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # quantiles of Student's t, 97.5 %
LOSSES = (
    *("adaface", "adaface_by_class", "adam_softmax", "arcface", "contrastive", "cosface", "curricularface"),
    *("magface", "magface_ema", "softmax", "sphereface", "sphereface2", "triplet"),
)


def column(benchmark="lfw", metric="accuracy", size=None, family=None, unit="subjects"):
    error = metric in ("eer", "fnmr")
    stamp = {"protocol": "pairs-10fold", "source": f"{benchmark}.bin sha256:0123abcd"}
    units = 4281 if unit == "subjects" else 6000
    return Column(
        f"{benchmark}/{metric}", benchmark, f"{benchmark} {metric}", error, True, stamp, unit, units, size,
        family or benchmark,
    )  # fmt: skip


def scores(name, skill, rng, points=400):
    """A DET curve of two normal distributions that lie `skill` apart, as steps of 1/points."""
    impostor, genuine = np.sort(rng.normal(0, 1, points)), np.sort(rng.normal(skill, 1, points))
    threshold = np.sort(np.concatenate([impostor, genuine]))[::-1]
    fmr = 1 - np.searchsorted(impostor, threshold, side="left") / points
    fnmr = np.searchsorted(genuine, threshold, side="left") / points
    return Scores(name, "pairs", {}, {}, {}, f"{name}/accuracy", False, fmr, fnmr, np.empty(0), None)


def run(choices, seed, values, columns, cost, rng, sweep, finished=True, validations=8, points=400):
    images = np.linspace(64_000, 512_000, validations)
    mean = values[columns[0].key]
    learnt = 0.5 + (mean - 0.5) * (1 - np.exp(-np.arange(1, validations + 1) / 2))
    learnt += 0.004 * rng.normal(size=validations)
    skills = {c.benchmark: 6 * (values[c.key] - 0.5) + 0.4 for c in columns if c.key in values and not c.error}
    job = ",".join(f"{key}={value}" for key, value in {**choices, "seed": seed}.items())
    return Run(
        Path("runs") / sweep / job, sweep, job, seed, finished, {"data.size": 112, **choices}, values,
        {name: scores(name, skill, rng, points) for name, skill in skills.items()},
        {"images": images, "val/accuracy": learnt}, cost, {}, f"id{seed}",
    )  # fmt: skip


def difference(mine, other, comparisons):
    """Of paired seeds; the p-value is none of Student's, but small where the difference is large."""
    both = [mine[seed] - other[seed] for seed in mine if seed in other]
    mean = float(np.mean(both))
    std = float(np.std(both, ddof=1)) if len(both) > 1 else math.nan
    half = T[len(both)] * std / math.sqrt(len(both))
    p = math.exp(-abs(mean) / (std / math.sqrt(len(both)) + 1e-9) / 2) if len(both) > 1 else 0.2
    corrected = min(1.0, comparisons * p)
    people = (mean - 0.004, mean + 0.004)
    return Difference(
        mean, std, len(both), (mean - half, mean + half) if len(both) > 1 else UNKNOWN, people, p,
        "seeds" if len(both) > 1 else "subjects", corrected, corrected < 0.05, 5.0 if len(both) > 1 else math.nan, 0.01,
    )  # fmt: skip


def cell(mine, base, best, error, comparisons):
    values = list(mine.values())
    mean = float(np.mean(values))
    std = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    half = T[len(values)] * std / math.sqrt(len(values))
    to_best = None if mine is best else difference(mine, best, comparisons)
    return Cell(
        mine, mean, std, (mean - half, mean + half) if len(values) > 1 else UNKNOWN, (mean - 0.005, mean + 0.0045),
        None if base is None or mine is base else difference(mine, base, comparisons), to_best, mine is best,
        to_best is None or not to_best.significant,
    )  # fmt: skip


def comparison(points, columns=None, seeds=(1, 2, 3), baseline=0, spread=0.002, warnings=(), points_of_det=400):
    """A whole one.

    Args:
        points: list of (choices, accuracy); the second and further columns have less of it.
        columns: of them; None: LFW's accuracy and EER, and AgeDB's accuracy.
        seeds: of each row.
        baseline: number of a row, or None.
        spread: standard deviation of seeds.
        warnings: sentences.
        points_of_det: pairs of each kind.
    """
    rng = np.random.default_rng(7)
    columns = columns or (column(), column(metric="eer"), column("agedb_30"))
    keys = tuple(dict.fromkeys(key for choices, _ in points for key in choices))
    found, made = [], []
    for i, (choices, accuracy) in enumerate(points):
        values = {seed: _values(columns, accuracy + spread * rng.normal(), rng, spread) for seed in seeds}
        cost = Cost(900.0 - 40 * i, 0.5 * 1.25 ** (i % 13), "NVIDIA H100", 1, 2.0**30 * (1 + i), 1e6 * (1 + i))
        runs = [run(choices, s, values[s], columns, cost, rng, "losses", points=points_of_det) for s in seeds]
        label = ", ".join(f"{key}={value}" for key, value in choices.items()) or "defaults"
        found.append([{seed: one[c.key] for seed, one in values.items()} for c in columns])
        made.append(Row(label, {key: choices.get(key) for key in keys}, tuple(runs), (), cost, False))
    cells = []
    for i in range(len(points)):
        cells.append([])
        for j, c in enumerate(columns):
            means = [np.mean(list(row[j].values())) for row in found]
            best = found[int(np.argmin(means) if c.error else np.argmax(means))][j]
            base = None if baseline is None else found[baseline][j]
            cells[i].append(cell(found[i][j], base, best, c.error, max(len(points) - 1, 1)))
    hours = np.array([row.cost.device_hours for row in made])
    sign = -1 if columns[0].error else 1
    gains = sign * np.array([one[0].mean for one in cells])
    better = (hours[:, None] <= hours) & (gains[:, None] >= gains)
    beaten = (better & ((hours[:, None] < hours) | (gains[:, None] > gains))).any(axis=0)
    made = [dataclasses.replace(row, frontier=not lost) for row, lost in zip(made, beaten, strict=True)]
    return Comparison(
        "losses", ("runs/losses",), keys, tuple(made), tuple(columns), tuple(map(tuple, cells)), baseline, 0.95,
        len(points) - 1, 1000, tuple(sensitivities(points, keys, columns, cells)), "device_hours", tuple(warnings), (),
    )  # fmt: skip


def _values(columns, accuracy, rng, spread):
    """By key; other benchmarks are more difficult, few pixels more so."""
    found = {}
    for i, c in enumerate(columns):
        lost = 0.015 * i if c.size is None else 0.6 * (14 / c.size) ** 1.5 / 4
        right = accuracy - lost + spread * rng.normal() / 2
        found[c.key] = float(1 - accuracy + 0.002 * rng.normal() if c.error else right)
    return found


def sensitivities(points, keys, columns, cells):
    for key in keys:
        values = [choices.get(key) for choices, _ in points]
        if not all(isinstance(value, (int, float)) for value in values) or len(set(values)) < 2:
            continue
        for number in range(len(columns)):
            groups = {}
            for row, (choices, _) in enumerate(points):
                others = ", ".join(f"{k}={v}" for k, v in choices.items() if k != key)
                groups.setdefault(others, []).append((choices[key], row))
            lines = []
            for others, members in groups.items():
                members = sorted(members)
                mine = [cells[row][number] for _, row in members]
                x = np.array([value for value, _ in members], dtype=float)
                low, high = np.array([one.interval for one in mine]).T
                mean = np.array([one.mean for one in mine])
                lines.append(Line(others, x, mean, low, high, tuple(row for _, row in members)))
            yield Sensitivity(key, number, tuple(lines))


def losses(**others):
    """Thirteen, three seeds each."""
    rng = np.random.default_rng(1)
    return comparison([({"loss": loss}, 0.96 + 0.01 * rng.normal()) for loss in LOSSES], **{"baseline": 3, **others})


def grid(**others):
    """Five margins times five scales."""
    points = [
        ({"loss.margin": m, "loss.scale": s}, 0.97 - 0.3 * (m - 0.4) ** 2 - 1e-5 * (s - 48) ** 2)
        for m, s in itertools.product((0.2, 0.3, 0.4, 0.5, 0.6), (16, 32, 48, 64, 96))
    ]
    return comparison(points, **{"baseline": None, "seeds": (1, 2), **others})


def resolutions(**others):
    """Two students at four resolutions of the test."""
    columns = (column(size=112), *(column(f"lfw_{size}px", size=size, family="lfw") for size in (56, 28, 14)))
    return comparison([({"distill": "none"}, 0.95), ({"distill": "askd"}, 0.96)], columns=columns, **others)
