"""One measurement: engines made, stages timed, threads counted, and what is left of the second."""

import json
import platform
import tempfile
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from torch import nn

from facelab.atomic import atomic
from facelab.backbone.weights import HOUSE
from facelab.benchmark.scores import save_table
from facelab.data.synthetic import render
from facelab.export.base import Runtime
from facelab.export.loading import Embedder, load_embedder
from facelab.export.model import EmbeddingModel
from facelab.export.networks import node_of
from facelab.kinds import check_kind
from facelab.latency import threads as own_threads
from facelab.latency.budget import fits, stages_of
from facelab.latency.engines import OFFERS, PRECISIONS, Engine, Maker, build, of_file
from facelab.latency.stages import measure
from facelab.prepare.detect import YuNet
from facelab.prepare.photograph import encode
from facelab.tracking import Tracker
from facelab.training.network import build_backbone
from facelab.verify.finding import Finder, open_photograph

__all__ = ["Report", "latency", "rows_of"]

_KINDS = {
    "model": str | None, "backbones": list[str], "size": int, "threads": int, "pin": bool, "runtimes": list[str],
    "precisions": list[str], "photographs": list[str], "repetitions": int, "budget": float, "out": str,
    "progress": bool,
}  # fmt: skip
_WIDTH, _HEIGHT, _FACE = 640, 480, 224  # pixels of the rendered photograph, and of the face in it
_FACES = 8  # of which int8 learns its scales, for the time alone


class Report(dict[str, Any]):
    """What was measured: `engines`, `measured`, `shared`, `fits`, `failed` (engine → why), `folder`."""


def latency(config: dict[str, Any]) -> Report:
    """Measures, prints a table, and leaves it with a picture.

    Args:
        config: conf/latency.yaml, plain values.

    Raises:
        ValueError, FileNotFoundError: something in it is wrong; said before anything is measured.
    """
    _check(config)
    torch.set_num_threads(config["threads"])
    cv2.setNumThreads(config["threads"])
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    if config["pin"]:
        own_threads.pin(config["threads"])
    detector = None if config["detect"] == "none" else YuNet(**config["detector"])
    photographs = _photographs(config, detector)
    with tempfile.TemporaryDirectory(prefix="facelab-latency-") as folder:
        engines, failed = _engines(config, Path(folder))
        if not engines:
            name, reason = next(iter(failed.items()), ("", "no runtime offers these precisions"))
            raise ValueError(f"nothing can be measured: {name}: {reason}")
        with Tracker("measuring", config["progress"], "repetitions") as tell:
            shared, own = measure(engines, photographs, detector, config["repetitions"], tell)
    report = Report(
        engines=engines, shared=shared, measured=own, failed=failed, fits=fits(engines, own, config["budget"]),
        folder=Path(config["out"]).expanduser() / _name(config),
    )  # fmt: skip
    _tell(report, config)
    _write(report, config)
    return report


def rows_of(report: Report) -> list[dict[str, Any]]:
    """The table: a row for each stage of each engine, and for the stages that all share."""
    rows: list[dict[str, Any]] = []
    parts: list[tuple[str, str, str, Any]] = [("all", "", "", report["shared"])]
    parts += [
        (e.network, e.runtime, e.precision, m) for e, m in zip(report["engines"], report["measured"], strict=True)
    ]
    for network, runtime, precision, measured in parts:
        stages: list[tuple[str, ...]] = [
            (stage,) for stage in measured.seconds if not runtime or stage in ("embed", "mirror", "compare")
        ]
        if runtime:
            stages.append(stages_of(measured, True, True))
        for stage in stages:
            name = stage[0] if len(stage) == 1 else "whole"
            used = measured.used
            rows.append({
                "network": network, "runtime": runtime, "precision": precision, "stage": name,
                **{f"{key}_ms": round(value, 4) for key, value in measured.spread(*stage)._asdict().items()},
                "cpu_per_wall": round(used.cpu / used.wall, 3), "busy_threads": used.busy,
            })  # fmt: skip
    return rows


def _check(config: dict[str, Any]) -> None:
    for key, kind in _KINDS.items():
        check_kind(key, config[key], kind)
    own_threads.limit(config["threads"])
    for key, known in (("runtimes", tuple(OFFERS)), ("precisions", PRECISIONS), ("detect", ("yunet", "none"))):
        given = config[key] if isinstance(config[key], list) else [config[key]]
        wrong = [word for word in given if word not in known]
        if wrong or not given:
            raise ValueError(f"{key} is {config[key]}: give of {', '.join(known)}")
    if config["repetitions"] < 1 or not config["budget"] > 0 or config["size"] < 1:
        raise ValueError("repetitions, budget and size: give numbers above 0")
    if bool(config["model"]) == bool(config["backbones"]):
        raise ValueError("give model=FILE, or backbones=[r18,r50] to measure networks with random weights")
    if config["model"] and not Path(config["model"]).expanduser().is_file():
        raise FileNotFoundError(f"model={config['model']}: no such file; give an exported model or a checkpoint")


def _photographs(config: dict[str, Any], detector: YuNet | None) -> list[np.ndarray]:
    """Encoded, and known to have a face each."""
    files = config["photographs"]
    if not files:
        return [_rendered(detector, config["size"])]
    finder = Finder(config["size"], "yunet", config["detector"], "best", 1)
    for file in files:
        open_photograph(file)
        if detector is not None:
            finder(file)
    return [np.fromfile(Path(file).expanduser(), np.uint8) for file in files]


def _rendered(detector: YuNet | None, size: int) -> np.ndarray:
    """A rendered face; in the middle of a photograph, where a detector shall find it."""
    if detector is None:
        return np.frombuffer(encode(render(0, 1, 0, size, 0.3)[..., ::-1], 95), np.uint8)
    for person in range(20):
        image = np.full((_HEIGHT, _WIDTH, 3), 127, np.uint8)
        top, left = (_HEIGHT - _FACE) // 2, (_WIDTH - _FACE) // 2
        image[top : top + _FACE, left : left + _FACE] = render(0, person, 0, _FACE, 0.3)[..., ::-1]
        encoded = np.frombuffer(encode(image, 90), np.uint8)
        if detector(image):
            return encoded
    raise ValueError("the detector finds no rendered face: give photographs with a face each, as a.jpg b.jpg")


def _engines(config: dict[str, Any], folder: Path) -> tuple[list[Engine], dict[str, str]]:
    """Those that can be made, and why the others cannot."""
    if config["model"] is None:
        sources = [_untrained(name, config["size"], config["threads"], folder) for name in config["backbones"]]
    else:
        runtime = Runtime(config["threads"], config["precision"], config["network"])
        embedder = load_embedder(config["model"], runtime)
        if not isinstance(embedder.network, EmbeddingModel):  # an exported file: what it is was decided then
            return [of_file(embedder, Path(config["model"]).expanduser())], {}
        sources = [_maker(Path(config["model"]).stem, embedder.network, embedder, config["threads"], folder)]
    engines, failed = [], {}
    for maker in sources:
        for runtime_name in config["runtimes"]:
            for precision in config["precisions"]:
                if precision not in OFFERS[runtime_name][0]:
                    continue
                name = f"{maker.network} {runtime_name} {precision}"
                print(f"{name} …", flush=True)
                try:
                    engines.append(build(maker, runtime_name, precision))
                except Exception as error:  # whatever a runtime stumbles over: the others are measured all the same
                    failed[name] = " ".join(str(error).split())[:300] or type(error).__name__
    return engines, failed


def _untrained(name: str, size: int, threads: int, folder: Path) -> Maker:
    torch.manual_seed(0)
    backbone = cast(Any, build_backbone(node_of(name, size), load=False))
    module = EmbeddingModel(backbone, nn.Identity(), HOUSE, preprocessing=True, mirror=False, unit=False)
    module.backbone.to(memory_format=torch.channels_last)
    faces = _faces(size)
    _show(module, faces)
    return Maker(name, module.eval(), size, backbone.embedding_size, threads, folder, faces)


def _show(module: EmbeddingModel, faces: np.ndarray) -> None:
    """Norms take their statistics from faces: with those of the start r100's numbers grow beyond float32's."""
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.momentum = 1.0
    with torch.no_grad():
        module.train()(torch.from_numpy(faces))


def _maker(name: str, module: EmbeddingModel, embedder: Embedder, threads: int, folder: Path) -> Maker:
    size = embedder.size
    return Maker(name, module, size, embedder.embedding_size, threads, folder, _faces(size))


def _faces(size: int) -> np.ndarray:
    return np.stack([render(0, person, 0, size, 0.3) for person in range(_FACES)])


def _name(config: dict[str, Any]) -> str:
    return Path(config["model"]).stem if config["model"] else "_".join(config["backbones"])


def _tell(report: Report, config: dict[str, Any]) -> None:
    print(f"\n{'milliseconds':<34}{'stage':<9}{'median':>9}{'p95':>9}{'p99':>9}{'CPU/wall':>10}{'threads':>9}")
    for row in rows_of(report):
        name = " ".join(filter(None, (row["network"], row["runtime"], row["precision"])))
        numbers = "".join(f"{row[key]:>9.2f}" for key in ("median_ms", "p95_ms", "p99_ms"))
        print(f"{name:<34}{row['stage']:<9}{numbers}{row['cpu_per_wall']:>10.2f}{row['busy_threads']:>9}")
    for name, reason in report["failed"].items():
        print(f"{name}: left out ({reason})")
    crowded = [
        engine.name
        for engine, one in zip(report["engines"], report["measured"], strict=True)
        if not one.used.within(config["threads"])
    ]
    kept = f"NOT kept by {', '.join(crowded)}" if crowded else "kept by all"
    proof = f"CPU time at most {own_threads.ALLOWED} × wall time and thread, busy threads counted"
    print(f"\nthreads={config['threads']}: {kept} ({proof})")
    print(f"\nin {config['budget']:g} s, by p99:")
    for fit in report["fits"]:
        word = f"fits, and {fit.more:,} passes more" if fit.fits else "DOES NOT FIT"
        print(f"  {fit.engine:<30}{fit.way:<36}{fit.median:>9.1f} ms, p99 {fit.p99:>8.1f} ms: {word}")


def _write(report: Report, config: dict[str, Any]) -> None:
    from facelab.latency.picture import save

    folder = report["folder"]
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows_of(report)
    save_table(folder / "latency.csv", rows)
    save_table(folder / "fits.csv", [fit._asdict() for fit in report["fits"]])
    about = {
        "config": config,
        "machine": {"processor": _processor(), "python": platform.python_version(), "torch": torch.__version__},
        "threads_kept": [one.used.within(config["threads"]) for one in report["measured"]],
        "rows": rows,
        "fits": [fit._asdict() for fit in report["fits"]],
        "failed": report["failed"],
        "used": [one.used._asdict() for one in report["measured"]],
    }
    with atomic(folder / "latency.json") as temporary:
        temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    picture = folder / "latency.png"
    save(
        picture,
        report["engines"],
        report["measured"],
        config["budget"],
        f"{'one thread' if config['threads'] == 1 else str(config['threads']) + ' threads'}, {_processor()}",
    )
    print(f"\nwritten to {folder}: latency.csv, fits.csv, latency.json, latency.png")


def _processor() -> str:
    """Its name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
