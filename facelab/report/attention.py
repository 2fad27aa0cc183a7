"""Draws where a teacher and its students look: `python -m facelab.report.attention teacher=… plain=… student=… …`.

The picture that A-SKD is known by (Shin et al., "Teaching Where to Look", ECCV 2022), and numbers beside it, since a
picture alone persuades too easily: how much of a map lies on eyes, nose and mouth, and how alike a student's maps and
its teacher's are, with intervals over people.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from facelab.atomic import atomic
from facelab.report.attention_looking import (
    ALL,
    DIFFERENCE,
    LIKENESS,
    NAMES,
    SHARES,
    WHICH_FACES,
    Found,
    Network,
    Options,
    measure,
    open_networks,
)
from facelab.report.attention_numbers import Interval, regions
from facelab.report.attention_picture import Column, draw
from facelab.training.progress import console

TITLES = dict(zip(NAMES, ("teacher", "plain student", "A-SKD student"), strict=True))
# Of the command line. 14 pixels: the paper's hardest. All units: those that A-SKD compares, and nobody has chosen one
# by how it looks.
DEFAULTS = {"pixels": "14", "count": "6", "block": "all", "teacher_block": "", "images": "500"}
TABLE = 122  # columns of characters that the widest table takes


def read_options(words: list[str]) -> Options:
    """Words as `pixels=14` → options.

    Raises:
        ValueError: a word that is none, is missing, or says what cannot be.
    """
    given: dict[str, str] = {}
    known = (*NAMES, "faces", "out", *DEFAULTS)
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in known:
            raise ValueError(f"{word}: is no option; give {', '.join(f'{key}=…' for key in known)}")
        if key in given:
            raise ValueError(f"{word}: {key} is given twice")
        given[key] = value
    for key, what in (
        ("teacher", "the checkpoint whose maps are the model"),
        ("faces", WHICH_FACES),
        ("out", "where the picture goes, as out=attention.png"),
    ):
        if not given.get(key):
            raise ValueError(f"{key}=… is missing: give {what}")
    if not given.keys() & {"plain", "student"}:
        raise ValueError("plain=… and student=… are both missing: give a student to compare with the teacher")
    out = Path(given["out"])
    if out.suffix.lower() != ".png" or not out.parent.is_dir():
        raise ValueError(f"out={out}: give a file that ends in .png, in a folder that exists")
    chosen = {**DEFAULTS, **given}
    pixels, count, images = (_whole(key, chosen[key]) for key in ("pixels", "count", "images"))
    if images < max(2, count):
        raise ValueError(f"images={images}: at least 2 are needed for an interval, and as many as count={count}")
    blocks = _blocks("block", chosen["block"])
    theirs = _blocks("teacher_block", chosen["teacher_block"]) if chosen["teacher_block"] else blocks
    networks = {key: given[key] for key in NAMES if key in given}
    return Options(networks, given["faces"], out, pixels, count, blocks, theirs, images)


def _whole(key: str, word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise ValueError(f"{key}={word}: give a whole number, at least 1")
    return int(word)


def _blocks(key: str, word: str) -> list[int] | None:
    if word == "all":
        return None
    numbers = word.strip("[]").split(",")
    if not all(number.strip().isdecimal() for number in numbers):
        raise ValueError(f"{key}={word}: give all, or numbers of attention units, counted from 0, as {key}=20 or 2,6")
    return [int(number) for number in numbers]


def columns(options: Options, networks: dict[str, Network], found: Found) -> list[Column]:
    """The picture's columns: the faces, what the students see of them, and the maps."""
    bounds = found.intervals
    student = "student" if "student" in networks else "plain"
    given, small = found.inputs["teacher"], found.inputs[student]
    made = [Column("input", f"{given.shape[1]} pixels", given), Column("degraded", f"{options.pixels} pixels", small)]
    for key in networks:
        on = "input" if key == "teacher" else "degraded"
        whole = bounds[key, ALL]
        foot = [f"share {_cell(whole, 100, 1)} %"]
        notes = []
        if key != "teacher":
            foot += [f"{name.split()[0]} {_cell(bounds[key, name], 1, 2)}" for name in LIKENESS]
            notes = [f"cosine {value:.2f}" for value in found.values[key, "cosine"][: options.count]]
        made.append(Column(TITLES[key], f"map on the {on}", found.inputs[key], found.maps[key], notes, foot))
    return made


def _cell(interval: Interval, factor: int, digits: int) -> str:
    mean, low, high = (f"{factor * value:.{digits}f}" for value in (interval.mean, interval.low, interval.high))
    return f"{mean} [{low}, {high}]"


def _flat(network: Network, quantity: str) -> float:
    """The share of a map without any preference: the region's part of the area."""
    masks = regions(network.size)
    return float(sum(mask.mean() for name, mask in masks.items() if quantity in (name, ALL)))


def rows(networks: dict[str, Network], found: Found) -> Iterator[dict[str, Any]]:
    """The numbers, one row for each network and quantity, with the share that a flat map has."""
    for (network, quantity), interval in found.intervals.items():
        flat = _flat(networks[network], quantity) if network in networks and quantity in SHARES else None
        yield {"network": network, "quantity": quantity, **vars(interval), "flat": flat}


def show(networks: dict[str, Network], found: Found) -> None:
    """Prints the table: shares in per cent of the map, likeness from −1 to 1, each with its 95 % interval."""
    table = Table(show_header=True, header_style="bold", box=None, padding=(0, 1))
    bounds = found.intervals
    heads = [head for head in (*NAMES, DIFFERENCE) if (head, ALL) in bounds]
    table.add_column("")
    for head in ("flat", *heads):
        table.add_column(head, justify="right", no_wrap=True)
    for quantity in (*SHARES, *LIKENESS):
        of_share = quantity in SHARES
        cells = [f"{100 * _flat(networks['teacher'], quantity):.1f}" if of_share else ""]
        for head in heads:
            one = bounds.get((head, quantity))
            cells.append("" if one is None else _cell(one, 100, 2) if of_share else _cell(one, 1, 3))
        table.add_row(f"{quantity}, %" if of_share else quantity, *cells)
    wide = console()
    wide.width = max(wide.width, TABLE)  # rather lines that a narrow terminal breaks than numbers cut off
    wide.print(table)


def write(options: Options, networks: dict[str, Network], found: Found) -> None:
    """Writes the picture, and its numbers beside it as .csv and as .json."""
    people = len(np.unique(found.people))
    about = {
        "faces": options.faces,
        "images": len(found.people),
        "people": people,
        "pixels": options.pixels,
        "networks": {key: network.about for key, network in networks.items()},
        "blocks": {key: list(network.units) for key, network in networks.items()},
    }
    table = list(rows(networks, found))
    caption = (
        f"Outlined: eyes, nose and mouth, {100 * _flat(networks['teacher'], ALL):.1f} % of the area, which is what a "
        f"flat map has there. Below the maps: their\nshare there, and their cosine to the teacher's, plain and centred,"
        f" with 95 % intervals over {people:,} people ({len(found.people):,} images)."
    )
    draw(options.out, columns(options, networks, found), caption)
    with atomic(options.out.with_suffix(".csv")) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    with atomic(options.out.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps({**about, "numbers": table}, indent=1, ensure_ascii=False), encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="facelab.report.attention",
        usage="python -m facelab.report.attention teacher=… plain=… student=… faces=… out=attention.png "
        + " ".join(f"[{key}={value or '…'}]" for key, value in DEFAULTS.items()),
        description="Draws where a teacher and its students look, and measures it; see docs/low_resolution.md.",
    )
    parser.add_argument("words", metavar="option=value", nargs="*")
    try:
        options = read_options(parser.parse_args().words)
        networks = open_networks(options)
        found = measure(options, networks, enabled=True)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")  # what Python says of a broken pickle has several lines
    show(networks, found)
    write(options, networks, found)
    print(options.out)


if __name__ == "__main__":
    main()
