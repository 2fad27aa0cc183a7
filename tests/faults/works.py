"""What is disturbed on purpose: trainings of many kinds, a set in the making, an export.

A work is started by `run`, any number of times, until it has ended. Afterwards `damaged` says which of its files are
not whole, and `unlike` in what it differs from one that was left alone.
"""

import csv
import hashlib
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import cv2
import hydra
import numpy as np
import torch
import yaml
from omegaconf import OmegaConf
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))

from killing import SMALL, compose

from facelab.backbone.weights import HOUSE
from facelab.data.synthetic import render
from facelab.door import configuration_folder
from facelab.prepare import pack, photos
from facelab.training import checkpoint, fit
from facelab.training.module import FaceModule
from facelab.training.network import build_backbone
from facelab.training.record import History

exporting = importlib.import_module("facelab.export.export")  # the package has a function of this name

CLOCK = ("images_per_s", "seconds")  # what a clock measures is never twice the same
cv2.setNumThreads(0)  # a fork would wait for its threads for ever
HIDDEN_ANYWAY = {".lock"}
SIZE = 48

# Beside the small run of killing.py, whose network has dropout and whose steps are cut into three parts.
TRAININGS = {
    "averaged": ["trainer.ema=0.9"],
    "much of it": [
        "loss=curricularface",
        "data/sampler=adaptive",
        "head=groupface",
        "head.groups=4",
        "trainer.ema=0.9",
    ],
    "adaface": ["loss=adaface", "data/sampler=balanced"],
    "adam_softmax": ["loss=adam_softmax", "optimizer=adamw", "optimizer.lr=0.002"],
    "prototypes": ["loss.classifier.prototypes.queue=3", "loss.classifier.prototypes.refresh=5"],
    "sampled classes": ["loss=cosface", "loss.classifier.sample_rate=0.5"],
    "triplets": ["loss=triplet", "data/sampler=pk"],
    "processes": [
        *("loss=curricularface", "trainer.validate_every=2"),
        "data.albumentations=[{GaussNoise: {p: 0.5}}, ToGray]",
    ],
    "dali": ["data/loader=dali", "loss=adaface", "trainer.precision=fp32"],
    "photographs": ["loss=cosface"],
    "distilled": ["distill=embedding", "trainer.ema=0.9"],
    "wandb": ["logger=wandb", "logger.mode=offline"],
}


OF_FILES = ("processes", "dali", "photographs")  # the others render their faces


@dataclass(frozen=True)
class Place:
    """A moment in a work's life: when a function is called."""

    owner: Any
    name: str  # of its function
    before: bool = True  # or behind it
    most: int = 4  # at the so manieth call at the latest: so often it is called in any start that comes that far


FILES = {
    "in a file": Place(os, "fsync"),
    "before a rename": Place(os, "replace"),
    "after a rename": Place(os, "replace", before=False),
}


class Training:
    """A small run.

    Args:
        kind: of TRAININGS.
        folder: where what it needs beforehand goes.
        more: choices besides.
    """

    signals = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    places: ClassVar[dict[str, Place]] = {
        **FILES,
        "before a start": Place(fit, "_build", most=1),
        "before an optimizer step": Place(FaceModule, "_clip"),
        "after a step": Place(FaceModule, "training_step", before=False),
        "in a validation": Place(FaceModule, "validation_step", before=False),
        "before a row": Place(History, "write"),
        "in the test": Place(FaceModule, "test_step", most=1),
        "after the scores": Place(fit, "save_all", before=False, most=1),
        "before the report": Place(fit.report, "draw", most=1),
    }

    def __init__(self, kind: str, folder: Path, *more: str):
        words = ["trainer.epochs=4", *TRAININGS[kind], *more]
        if kind in OF_FILES:
            words += [f"data.root='{photographs(folder / 'faces', people=20, each=5)}'", "data=folder"]
            words += ["~data.identities", "~data.images_per_identity"]
        if kind == "distilled":
            words.append(f"distill.teacher.checkpoint='{untrained(folder / 'teacher.ckpt')}'")
        self.config, self.plain = composed(words)

    def run(self, where: Path) -> None:
        """Trains to the end, or shows that it is there already."""
        fit.train(self.config, self.plain, where, one_process=False)

    def damaged(self, where: Path) -> list[str]:
        """Files under a final name that are not whole; of metrics.csv the last row may be torn."""
        return broken(where, {".ckpt": _tensors, ".npz": _arrays, ".json": _json, ".yaml": _yaml, ".png": _picture})

    def unlike(self, alone: Path, struck: Path) -> list[str]:
        """What differs at the end."""
        found = []
        for name in ("last.ckpt", "best.ckpt"):
            (tensors, told), (others, also) = (_tensors(path / "checkpoints" / name) for path in (alone, struck))
            found += [f"{name}: {key}" for key in sorted(set(tensors) ^ set(others))]
            same = set(tensors) & set(others)
            found += [f"{name}: {key}" for key in same if tensors[key].tobytes() != others[key].tobytes()]
            found += [f"{name}: progress"] * (told != also)
        for name, read in (
            ("metrics.csv", _rows),
            ("metrics.json", lambda file: _without_clock(_json(file))),
            ("histograms.npz", lambda file: _arrays(file)),
            ("scores/heldout.npz", lambda file: _arrays(file)),
        ):
            found += [name] * (read(alone / name) != read(struck / name))
        found += [f"{name} is missing" for name in ("config.yaml", "report.png") if not (struck / name).is_file()]
        return found + [f"{name} is left" for name in hidden(struck) - hidden(alone) - HIDDEN_ANYWAY]


class Preparing:
    """A set of aligned photographs, packed."""

    signals = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
    places: ClassVar[dict[str, Place]] = {
        **FILES,
        "in the pack": Place(pack, "frame"),
        "in the sheets": Place(photos, "save", before=False, most=1),
        "before it appears": Place(photos, "publish_folder", most=1),
        "after it appeared": Place(photos, "publish_folder", before=False, most=1),
    }

    def __init__(self, kind: str, folder: Path):
        source = photographs(folder / "photographs", people=5, each=6)
        words = [f"source='{source}'", "out=x", "detect=none", f"size={SIZE}", "part=4", "shown=6", "progress=false"]
        with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"):
            self.choices: dict[str, Any] = OmegaConf.to_container(hydra.compose("prepare", words))  # type: ignore
        del self.choices["_target_"]

    def run(self, where: Path) -> None:
        """Prepares it, or says that it is there already."""
        photos.prepare(**{**self.choices, "out": str(where)})

    def damaged(self, where: Path) -> list[str]:
        """The folder is there complete, or not at all: `unlike` says it then."""
        return [] if not where.exists() or (where / "report.json").is_file() else [str(where)]

    def unlike(self, alone: Path, struck: Path) -> list[str]:
        """Files that differ, and what is left beside them."""
        before, now = digests(alone), digests(struck)
        differing = [name for name in before.keys() | now.keys() if before.get(name) != now.get(name)]
        return differing + [f"{name} is left" for name in hidden(struck.parent)]


class Exporting:
    """An export of a tiny network.

    Args:
        kind: its format.
        folder: where the checkpoint goes.
    """

    signals = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
    places: ClassVar[dict[str, Place]] = {
        **{name: replace(place, most=1) for name, place in FILES.items()},
        "before the comparison": Place(exporting, "compare", most=1),
        "before its report": Place(exporting, "write_report", most=1),
        "after its report": Place(exporting, "write_report", before=False, most=1),
        "before it is told": Place(exporting, "_tell", most=1),
    }

    def __init__(self, kind: str, folder: Path):
        OmegaConf.register_new_resolver("facelab.job", lambda: "small", replace=True)
        words = [f"checkpoint='{untrained(folder / 'small.ckpt')}'", f"format={kind}", "progress=false"]
        words += ["parity.identities=6", "parity.images=3"]
        with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"):
            self.config = hydra.compose("export", words)

    def run(self, where: Path) -> None:
        """Exports it; raises FileExistsError where it is there already."""
        exporting.export(self.config, where)

    def damaged(self, where: Path) -> list[str]:
        """The folder is there complete, or not at all."""
        whole = {"export.json", "export.md"} <= {path.name for path in where.glob("*")} and any(where.glob("model.*"))
        return [] if not where.exists() or whole else [str(where)]

    def unlike(self, alone: Path, struck: Path) -> list[str]:
        """Whether it gives other embeddings, and what is left beside it."""
        images = np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
        first, second = (exporting.load_embedder(next(path.glob("model.*"))).embed(images) for path in (alone, struck))
        found = ["embeddings"] * (first.tobytes() != second.tobytes())
        return found + [f"{name} is left" for name in hidden(struck.parent)]


WORKS: dict[str, Callable[[Path], Any]] = {
    **{f"training, {kind}": lambda folder, kind=kind: Training(kind, folder) for kind in TRAININGS},  # type: ignore
    "prepare": lambda folder: Preparing("photos", folder),
    **{f"export, {kind}": lambda folder, kind=kind: Exporting(kind, folder) for kind in ("torchscript", "onnx")},  # type: ignore
}


def composed(words: list[str]) -> tuple[Any, dict[str, Any]]:
    """The configuration of a small run, and the same as plain values; `~key` takes away one of killing.py's choices."""
    dropped = tuple(word[1:] for word in words if word.startswith("~"))
    wanted = [word for word in words if not word.startswith("~")]
    if not dropped:
        return compose(*wanted)
    OmegaConf.register_new_resolver("facelab.job", lambda: "small", replace=True)
    kept = [word for word in SMALL if word.split("=")[0] not in dropped]
    with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        config = hydra.compose("config", [*kept, *wanted])
    return config, OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def photographs(root: Path, people: int, each: int) -> Path:
    """A folder of rendered, aligned faces: root/p01/2.jpg."""
    for person in range(people):
        (root / f"p{person:02}").mkdir(parents=True, exist_ok=True)
        for image in range(each):
            pixels = render(0, person, image, SIZE, 1.0)[..., ::-1]
            cv2.imencode(".jpg", pixels)[1].tofile(root / f"p{person:02}" / f"{image}.jpg")
    return root


def untrained(path: Path) -> Path:
    """A checkpoint of the small network as it begins, with batch norms that have seen noise."""
    config, plain = composed(["backbone.dropout=0.0"])
    torch.manual_seed(3)
    backbone = build_backbone(config.backbone, load=False)
    with torch.no_grad():
        backbone.train()(torch.rand(8, 3, SIZE, SIZE) * 2 - 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    model = torch.nn.ModuleDict({"backbone": backbone, "head": torch.nn.Identity()})
    about = {"step": 2, "config": plain, "num_classes": 8, "input": asdict(HOUSE)}
    checkpoint.save(path, model, None, about)
    return path


# What is whole, and what is equal


def broken(where: Path, readers: dict[str, Callable[[Path], Any]]) -> list[str]:
    """Files of these kinds that cannot be read; those that are hidden may be anything."""
    found = []
    for file in sorted(where.rglob("*")):
        inside = file.relative_to(where)
        if file.suffix not in readers or "wandb" in inside.parts or any(part.startswith(".") for part in inside.parts):
            continue
        try:
            readers[file.suffix](file)
        except Exception as error:
            found.append(f"{inside}: {error}")
    return found


def hidden(where: Path) -> set[str]:
    """Names of hidden files and folders, in whatever depth."""
    return {path.name for path in where.rglob(".*")}


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a set; of its report without what a clock measured."""
    found = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = file.read_bytes()
        if file.name == "report.json":
            content = json.dumps({**json.loads(content), "seconds": 0}).encode()
        found[file.relative_to(folder).as_posix()] = hashlib.sha256(content).hexdigest()
    return found


def _tensors(path: Path) -> tuple[dict[str, np.ndarray], Any]:
    with safe_open(path, "np") as file:
        names = list(file.keys())
        progress = json.loads(file.metadata()["facelab"]).get("progress", {}) if "facelab" in file.metadata() else {}
        return {name: file.get_tensor(name) for name in names}, {**progress, "seconds": 0}


def _arrays(path: Path) -> dict[str, Any]:
    with np.load(path) as file:
        return {key: (file[key].shape, file[key].dtype.str, file[key].tobytes()) for key in file.files}


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


def _yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _picture(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    if image is None:
        raise ValueError("is no picture")
    return image


def _without_clock(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in CLOCK}


def _rows(path: Path) -> list[dict[str, Any]]:
    with open(path, newline="") as file:
        return [_without_clock(row) for row in csv.DictReader(file)]
