"""How long does a face take in one thread, under which runtime, and does the whole way fit into a second?

r100 at 112×112 under every runtime and precision, one after another in every repetition, so that whatever else runs on
the machine slows all alike; `of_eager` is the median against torch eager fp32 in the same run. The whole way: read,
detect, align a photograph, embed it and its mirrored image, compare. `distance` is the largest cosine distance to eager
fp32 on rendered faces, `passes` whether it is within what conf/export.yaml allows for that precision. Targets: OpenVINO
fp32 ≤ 0.75 × eager, the fastest precision that passes ≤ 0.2 × where the processor has bf16 or int8 units, the whole way
with it ≤ 0.15 s. Rows carry CPU time per wall time and the number of busy threads: one, or it is no one-thread figure.

Writes results/latency.csv; a row of the same machine, versions and engine is replaced. Random weights take as long as
trained ones; `--model` takes a checkpoint, whose distances mean more. Needs photographs and the detector's file.

    python benchmarks/latency.py
    python benchmarks/latency.py --networks r18 r50 r100 --runtimes openvino      # what fits in the budget
"""

import argparse
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from recording import load, machine, record, today

from facelab.configuration import defaults
from facelab.data.synthetic import render
from facelab.latency import latency as task
from facelab.latency.engines import OFFERS, PRECISIONS, Engine

KEY = ["machine", "python", "torch", "onnxruntime", "openvino", "network", "runtime", "precision", "stage"]
FACES = 16  # whose embeddings are compared
TARGETS = {"openvino fp32": 0.75, "fastest": 0.2, "whole_s": 0.15}


def choices(arguments: argparse.Namespace, out: str) -> dict[str, Any]:
    """The defaults of conf/, with these."""
    given = defaults("detection", "recognition", "latency")
    given["detector"]["model"] = arguments.detector
    photographs = [str(file) for file in sorted(Path(arguments.photos).glob("*/*.jpg"))[: arguments.count]]
    given |= {"photographs": photographs} if arguments.detector else {"detect": "none"}
    return given | {
        "model": arguments.model, "network": arguments.backbone, "out": out,
        "backbones": [] if arguments.model else arguments.networks, "repetitions": arguments.repetitions,
        "runtimes": arguments.runtimes, "precisions": arguments.precisions,
    }  # fmt: skip


def distances(engines: list[Engine]) -> dict[str, float]:
    """Engine → the largest cosine distance to eager fp32 of the same network; nothing of others."""
    found = {}
    plain = {one.network: one for one in engines if (one.runtime, one.precision) == ("eager", "fp32")}
    for one in engines:
        if one.network not in plain:
            continue
        faces = [render(1, person, 0, one.size, 0.3)[None] for person in range(FACES)]
        ours, theirs = (np.concatenate([engine.run(face) for face in faces]) for engine in (one, plain[one.network]))
        ours, theirs = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (ours, theirs))
        found[one.name] = float((np.square(ours.astype(np.float64) - theirs).sum(axis=1) / 2).max())
    return found


def judged(rows: list[dict[str, Any]], distance: dict[str, float]) -> list[dict[str, str]]:
    """Rows with their share of eager fp32, and whether they pass parity."""
    allowed = {precision: told["max"] for precision, told in defaults("export")["parity"]["tolerance"].items()}
    plain = {
        (row["network"], row["stage"]): row["median_ms"]
        for row in rows
        if (row["runtime"], row["precision"]) == ("eager", "fp32")
    }
    found = []
    for row in rows:
        name = f"{row['network']} {row['runtime']} {row['precision']}"
        base = plain.get((row["network"], row["stage"]))
        told = distance.get(name)
        found.append({
            **{key: str(value) for key, value in row.items()},
            "of_eager": "" if not base else f"{row['median_ms'] / base:.3f}",
            "distance": "" if told is None else f"{told:.2e}",
            "passes": "" if told is None else str(told <= allowed[row["precision"]]).lower(),
        })  # fmt: skip
    return found


def targets(rows: list[dict[str, str]]) -> list[str]:
    """What was to be reached, and whether it was."""
    lines = []
    for network in dict.fromkeys(row["network"] for row in rows if row["runtime"]):
        own = [row for row in rows if row["network"] == network and row["of_eager"]]
        embeds = [row for row in own if row["stage"] == "embed" and row["passes"] == "true"]
        for row in embeds:
            if (row["runtime"], row["precision"]) == ("openvino", "fp32"):
                lines.append(_line(network, "OpenVINO fp32 of eager", float(row["of_eager"]), TARGETS["openvino fp32"]))
        if not embeds:
            continue
        best = min(embeds, key=lambda row: float(row["median_ms"]))
        name = f"{best['runtime']} {best['precision']}"
        lines.append(
            _line(network, f"fastest that passes ({name}) of eager", float(best["of_eager"]), TARGETS["fastest"])
        )
        whole = next(
            row for row in own
            if row["stage"] == "whole" and (row["runtime"], row["precision"]) == (best["runtime"], best["precision"])
        )  # fmt: skip
        lines.append(_line(network, f"whole way with {name}, s", float(whole["median_ms"]) / 1000, TARGETS["whole_s"]))
    return lines


def _line(network: str, what: str, value: float, target: float) -> str:
    return f"{network}: {what}: {value:.3f} (target {target}: {'reached' if value <= target else 'MISSED'})"


def main() -> None:
    """Measures, prints and records."""
    data = Path(__file__).resolve().parents[2] / "shared" / "data"
    name = "yunet_n_dynamic.onnx" if int(cv2.__version__.split(".")[0]) >= 5 else "yunet_n_320_320.onnx"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["r100"], help="of conf/backbone, with random weights")
    parser.add_argument("--model", help="a checkpoint or published weights in their place")
    parser.add_argument("--backbone", help="which network published weights are of")
    parser.add_argument("--runtimes", nargs="+", default=list(OFFERS), choices=list(OFFERS))
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--photos", default=str(data / "photos"), help="folder of <person>/<photograph>.jpg")
    parser.add_argument("--count", type=int, default=10, help="photographs of these (default: %(default)s)")
    parser.add_argument("--detector", default=str(data / "weights" / name), help="its file; '' leaves detection out")
    parser.add_argument("--repetitions", type=int, default=100, help="of each stage (default: %(default)s)")
    parser.add_argument("--dry", action="store_true", help="print only, record nothing")
    arguments = parser.parse_args()
    busy = load()
    with tempfile.TemporaryDirectory(prefix="facelab-latency-") as folder:
        report = task.latency(choices(arguments, folder))
    rows = judged(task.rows_of(report), distances(report["engines"]))
    common = {
        "date": today(),
        "machine": machine(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "onnxruntime", "openvino")},
        "load": busy,
        "repetitions": str(arguments.repetitions),
    }
    print(f"\n{'engine':<34}{'of eager':>9}{'distance':>11}{'passes':>8}")
    for row in rows:
        if row["stage"] == "embed":
            engine = f"{row['network']} {row['runtime']} {row['precision']}"
            print(f"{engine:<34}{row['of_eager']:>9}{row['distance']:>11}{row['passes']:>8}")
    for line in targets(rows):
        print(line)
    if not arguments.dry:
        print(f"recorded in {record('latency', KEY, [{**common, **row} for row in rows])}")


if __name__ == "__main__":
    main()
