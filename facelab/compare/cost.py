"""What rows have cost, and which give most for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from facelab.compare.results import Cell, Column, Cost, Row, Run


def cost_of(runs: Sequence[Run]) -> Cost:
    """Means over the runs of a row; of memory the largest, of the device the first that is known."""
    costs = [run.cost for run in runs]

    def known(name: str) -> np.ndarray:
        values = np.array([getattr(cost, name) for cost in costs], np.float64)
        return values[~np.isnan(values)]

    def mean(name: str) -> float:
        values = known(name)
        return float(values.mean()) if len(values) else float("nan")

    memory = known("peak_memory")
    return Cost(
        images_per_s=mean("images_per_s"),
        device_hours=mean("device_hours"),
        device=next((cost.device for cost in costs if cost.device), ""),
        devices=max(cost.devices for cost in costs),
        peak_memory=float(memory.max()) if len(memory) else float("nan"),
        parameters=mean("parameters"),
    )


def frontier(rows: Sequence[Row], cells: Sequence[Sequence[Cell | None]], column: Column) -> tuple[str, list[bool]]:
    """The cost that is weighed against the first column, and which rows no other one beats in both (Pareto).

    Device hours where every row that has a number knows them and they were of one kind of device, else parameters.
    """
    measured = [i for i, one in enumerate(cells) if one[0] is not None]
    for key in ("device_hours", "parameters"):
        costs = np.array([getattr(rows[i].cost, key) for i in measured], np.float64)
        devices = {rows[i].cost.device for i in measured}
        if not len(costs) or np.isnan(costs).any() or (key == "device_hours" and len(devices) > 1):
            continue
        sign = -1 if column.error else 1
        gains = sign * np.array([cell.mean for i in measured if (cell := cells[i][0]) is not None])
        # Someone else is at least as good in both, and better in one.
        better = (gains[:, None] >= gains) & (costs[:, None] <= costs)
        better &= (gains[:, None] > gains) | (costs[:, None] < costs)
        at = [False] * len(rows)
        for place, beaten in zip(measured, np.atleast_1d(better.any(axis=0)), strict=True):
            at[place] = not bool(beaten)
        return key, at
    return "", [False] * len(rows)
