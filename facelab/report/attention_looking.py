"""What networks look at, measured: every network's attention maps on the same faces, and what becomes of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facelab.backbone.attention import attention_maps
from facelab.backbone.stages import shapes
from facelab.benchmark.pair_files import read_bin
from facelab.data.augment import normalise
from facelab.data.degrade import LowResolution
from facelab.data.open import open_faces
from facelab.data.torch_loader import EvalLoader, Images
from facelab.distill.maps import resized
from facelab.report.attention_numbers import (
    REGIONS,
    Interval,
    choose,
    cosine,
    intervals,
    people_of_pairs,
    regions,
    share,
)
from facelab.training.progress import Tracker
from facelab.training.trained import file_of, meta_of, out_of_checkpoint

NAMES = ("teacher", "plain", "student")  # of the networks, as they are typed; plain is the student without a teacher
ALL = "all three"  # regions together
SHARES = (*REGIONS, ALL)
LIKENESS = ("cosine", "centred cosine")
DIFFERENCE = "student − plain"
WHICH_FACES = "a folder with one folder of aligned images for each person, InsightFace's pack, or a .bin"
BATCH = 32  # images at once
THREADS, PREFETCH = 2, 2  # of the loader


@dataclass(frozen=True)
class Options:
    """What was typed, checked.

    Attributes:
        networks: one of NAMES → path as typed.
        faces: a folder, or a `.bin`.
        out: the picture.
        pixels: what the students see.
        count: faces in the picture.
        blocks: attention units of the students, from 0; None for all.
        teacher_blocks: the teacher's, compared with them in this order.
        images: faces that are measured, at most.
    """

    networks: dict[str, str]
    faces: str
    out: Path
    pixels: int
    count: int
    blocks: list[int] | None
    teacher_blocks: list[int] | None
    images: int


@dataclass(frozen=True)
class Network:
    """A network with attention.

    Attributes:
        backbone: (B,3,size,size) in [−1,1] → (B,D).
        size: pixels of its images.
        units: numbers of the attention units whose maps are taken.
        about: its file, in words.
    """

    backbone: nn.Module
    size: int
    units: tuple[int, ...]
    about: str


@dataclass
class Found:
    """What was measured.

    Attributes:
        values: (network, quantity) → (N,) a number for each image.
        maps: network → (count,size,size) its maps of the faces in the picture, after the sigmoid.
        inputs: network → (count,size,size,3) uint8 what it saw there.
        people: (N,) who is on each image.
    """

    values: dict[tuple[str, str], np.ndarray]
    maps: dict[str, np.ndarray]
    inputs: dict[str, np.ndarray]
    people: np.ndarray

    @cached_property
    def intervals(self) -> dict[tuple[str, str], Interval]:
        """A mean and its bounds for every quantity, and for the paired differences of the two students."""
        values = dict(self.values)
        for (network, quantity), of_student in self.values.items():
            if network == "student" and ("plain", quantity) in values:
                values[DIFFERENCE, quantity] = of_student - values["plain", quantity]
        return dict(zip(values, intervals(np.stack(list(values.values()), 1), self.people), strict=True))


def open_networks(options: Options) -> dict[str, Network]:
    """The networks, in evaluation mode.

    Raises:
        ValueError: a file that is no checkpoint of facelab, a network without attention or without such a unit, or more
            pixels than its images have.
        FileNotFoundError: there is no such file.
    """
    found: dict[str, Network] = {}
    for key, given in options.networks.items():
        path = file_of(key, given)
        meta = meta_of(path)
        if meta is None:
            raise ValueError(f"{key}={path}: is no checkpoint of facelab: give a best.ckpt or last.ckpt of a run")
        backbone, _, about = out_of_checkpoint(key, path, meta, None)
        size = meta["config"]["data"]["size"]
        count = len(shapes(backbone, size)[1])
        if not count:
            raise ValueError(
                f"{key}={path}: its {type(backbone).__name__} has no attention: train one with backbone.attention=cbam"
            )
        option, blocks = "block", options.blocks
        if key == "teacher":
            option, blocks = "teacher_block" if options.teacher_blocks != blocks else option, options.teacher_blocks
        elif options.pixels > size:
            raise ValueError(f"pixels={options.pixels}, but {key}={path} takes images of {size}: give at most {size}")
        wrong = [block for block in blocks or () if block >= count]
        if wrong:
            raise ValueError(
                f"{option}={wrong[0]}: {key}={path} has {count} attention units, numbered from 0 to {count - 1}"
            )
        units = tuple(range(count) if blocks is None else blocks)
        found[key] = Network(backbone.eval().requires_grad_(False), size, units, about)
        first = found["teacher"]
        if len(units) != len(first.units):
            raise ValueError(
                f"the maps of {len(first.units)} attention units of the teacher cannot be compared with those of "
                f"{len(units)} of {key}={path}: list as many in block=… and teacher_block=…, as their distillation did"
            )
    return found


@dataclass(frozen=True)
class Faces:
    """Some images of a source, in an order.

    Attributes:
        source: (size,size,3) uint8 images by number.
        chosen: (N,) their numbers there.
    """

    source: Any
    chosen: np.ndarray

    def __len__(self) -> int:
        return len(self.chosen)

    def load(self, index: int, out: np.ndarray | None = None) -> np.ndarray:
        """An image (size,size,3) uint8 RGB."""
        image: np.ndarray = self.source.load(int(self.chosen[index]), out)
        return image


def open_all(options: Options, sizes: list[int]) -> tuple[dict[int, Images], np.ndarray]:
    """The faces at every size, and (N,) who is on them; at first as many different people as there are.

    Raises:
        ValueError, FileNotFoundError: they cannot be read, or there are fewer people than the picture is to show.
    """
    path = Path(options.faces).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"faces={path}: no such file or folder: give {WHICH_FACES}")
    sources: dict[int, Any] = {}
    for size in sizes:
        try:
            sources[size] = read_bin(path, "faces", 1, size) if path.is_file() else open_faces(path, size)
        except (ValueError, FileNotFoundError) as error:
            text = str(error).replace("data.root=", "faces=")
            raise type(error)(text if text.startswith("faces=") else f"faces={path}: {text}") from error
    first = sources[sizes[0]]
    people = people_of_pairs(first.pairs, first.same, len(first)) if path.is_file() else np.asarray(first.labels)
    there = len(np.unique(people))
    if there < max(2, options.count):
        raise ValueError(f"count={options.count}: faces={path} has {there} people: give fewer, or other faces")
    chosen = choose(people, options.images)
    return {size: Faces(source, chosen) for size, source in sources.items()}, people[chosen]


def measure(options: Options, networks: dict[str, Network], enabled: bool) -> Found:
    """Looks at all faces with all networks: the teacher sees them as they are, the students shrunk and brought back.

    Args:
        options: see Options.
        networks: by their NAMES, the teacher first.
        enabled: whether progress is shown.

    Raises:
        ValueError, FileNotFoundError: see `open_all`; or an image cannot be read.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for network in networks.values():
        network.backbone.to(device)
    sizes = list(dict.fromkeys(network.size for network in networks.values()))
    faces, people = open_all(options, sizes)
    masks = {size: {**regions(size), ALL: np.any(list(regions(size).values()), axis=0)} for size in sizes}
    loaders = [EvalLoader(faces[size], BATCH, 0, 1, THREADS, PREFETCH, False) for size in sizes]
    shrink = LowResolution(1.0, options.pixels, "bicubic", "bicubic", validation=False)
    parts: dict[tuple[str, str], list[np.ndarray]] = {}
    kept: dict[str, dict[str, list[np.ndarray]]] = {key: {"maps": [], "inputs": []} for key in networks}
    done = 0
    with Tracker("looking", enabled) as tell:
        for batches in zip(*loaders, strict=True):
            images = {size: batch.images.to(device) for size, batch in zip(sizes, batches, strict=True)}
            maps: dict[str, list[Tensor]] = {}
            for key, network in networks.items():
                seen = images[network.size]
                if key != "teacher":
                    seen = shrink(seen, torch.zeros(len(seen), shrink.draws, device=device))
                maps[key] = look(network, seen)
                picture = laid_out(maps[key], network.size).cpu().numpy()
                for name, mask in masks[network.size].items():
                    parts.setdefault((key, name), []).append(share(picture, mask))
                for name, numbers in likeness(maps[key], maps["teacher"]).items() if key != "teacher" else ():
                    parts.setdefault((key, name), []).append(numbers)
                shown = max(0, options.count - done)
                kept[key]["maps"].append(picture[:shown])
                kept[key]["inputs"].append(seen[:shown].cpu().numpy().copy())  # a loader's memory
            done += len(batches[0].images)
            tell(done, len(people))
    together = {key: {name: np.concatenate(arrays) for name, arrays in lists.items()} for key, lists in kept.items()}
    return Found(
        {key: np.concatenate(arrays) for key, arrays in parts.items()},
        {key: arrays["maps"] for key, arrays in together.items()},
        {key: arrays["inputs"] for key, arrays in together.items()},
        people,
    )


@torch.inference_mode()
def look(network: Network, images: Tensor) -> list[Tensor]:
    """Images (B,H,H,3) uint8 → the chosen units' spatial maps, each (B,1,h,w), before their sigmoid."""
    with attention_maps(network.backbone) as maps:
        network.backbone(normalise(images))
    return [maps[unit][1].float() for unit in network.units]


def laid_out(maps: list[Tensor], size: int) -> Tensor:
    """Maps (B,1,h,w) before their sigmoid → (B,size,size): each after it, laid over the image, and their mean."""
    layers = [F.interpolate(one.sigmoid(), size=(size, size), mode="bilinear", align_corners=False) for one in maps]
    return torch.stack(layers).mean(0)[:, 0]


def likeness(student: list[Tensor], teacher: list[Tensor]) -> dict[str, np.ndarray]:
    """LIKENESS → (B,): how alike the maps (B,1,h,w) are, unit by unit, and the mean over the units.

    A teacher's map of another size is brought to the student's, as in distillation.
    """
    pairs = [(mine.cpu().numpy(), resized(its, mine).cpu().numpy()) for mine, its in zip(student, teacher, strict=True)]
    return {
        name: np.mean([cosine(*pair, centred) for pair in pairs], axis=0)
        for name, centred in zip(LIKENESS, (False, True), strict=True)
    }
