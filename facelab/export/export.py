"""One export: a checkpoint, or published weights, becomes a file that is proven to be the same model."""

import copy
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from facelab import __version__
from facelab.atomic import atomic_folder, forget_leftover, refuse_existing
from facelab.backbone.weights import HOUSE, Input
from facelab.digest import digest_of
from facelab.export.base import Format, Runtime, Writing
from facelab.export.choices import TYPES, Choices
from facelab.export.faces import Faces, calibration_faces, compared_faces
from facelab.export.folding import fold
from facelab.export.loading import Embedder, as_outside, load_embedder
from facelab.export.model import EmbeddingModel
from facelab.export.parity import Parity, Tolerance, as_seen, compare, layers, parts_at
from facelab.export.report import write_report
from facelab.export.watching import watched
from facelab.tracking import Tracker
from facelab.training.module import embed
from facelab.training.network import COMMON
from facelab.training.options import check_kind
from facelab.training.trained import Trained, file_of, meta_of, out_of_checkpoint, out_of_weights

BATCH = 32  # images at once where the original is asked
LOOKED_AT = 2  # images whose way through the layers is followed where an export differs


@dataclass(frozen=True)
class Original:
    """What is exported, and what is known of it."""

    path: Path
    trained: Trained
    node: dict[str, Any]  # the backbone's
    meta: Mapping[str, Any] | None  # of a checkpoint of facelab
    size: int

    @property
    def convention(self) -> Input:
        """What the network's weights are used to."""
        return getattr(self.trained.backbone, "input_convention", HOUSE)


def export(config: DictConfig, where: Path) -> Path:
    """Exports a model: model.<suffix>, and export.json and export.md, which tell what it is and how near it is.

    Args:
        config: conf/export.yaml.
        where: the folder; it is there complete, or as it was before.

    Returns:
        The file.

    Raises:
        ValueError, FileNotFoundError: something in the configuration or its file is wrong, or the exported model is not
            the same model; nothing was written.
        FileExistsError: something lies there already.
    """
    began = time.perf_counter()
    format: Format = instantiate(config.format)
    choices = Choices(config.precision, config.preprocessing, config.mirror, config.unit, config.batch, config.fold)
    choices.check(format)
    format.check(choices.precision)
    check_kind("progress", config.progress, bool)
    tolerance = _tolerance(config)
    forget_leftover(where)
    refuse_existing(where)
    original = _original(config)
    faces = compared_faces(
        "parity.faces", config.parity.faces, config.parity.identities, config.parity.images, original.size
    )
    calibration = _calibration(config, choices, original)
    before = _before(config, original, faces)
    with atomic_folder(where) as folder:
        file = folder / f"model{format.suffix}"
        writing, folded = prepared(original, choices, format, calibration)
        format.write(writing, file)
        after = _embed(load_embedder(file, Runtime(convention=original.convention, size=original.size)), faces, config)
        found = compare(before, after, faces.labels, config.parity.fmr)
        complaints = found.complaints(tolerance)
        if complaints:
            where_parted = _where(original, choices, format, file, folded, faces, tolerance)
            raise ValueError(
                f"the exported model is not the same model: {'; '.join(complaints)}, on {faces.about} (the worst is "
                f"image {found.worst}); {where_parted}. Nothing was written"
            )
        write_report(
            folder, file, writing.metadata, original.path, found, tolerance, faces.about, time.perf_counter() - began
        )
    _tell(original, where / file.name, writing.metadata, found)
    return where / file.name


def prepared(
    original: Original, choices: Choices, format: Format, calibration: np.ndarray | None
) -> tuple[Writing, dict[str, str]]:
    """The model in the form that was chosen, what it is to say of itself, and which norms were folded into what."""
    model = _model(original, choices)
    count = choices.batch or 2
    blank = np.zeros((count, original.size, original.size, 3), np.uint8)
    example = _given(blank, original.convention, choices.preprocessing)
    folded = fold(model, example) if choices.fold and format.embeds else {}
    if format.embeds:
        model.cast(TYPES[choices.precision])
    batches: list[np.ndarray] = []
    if calibration is not None:
        size = choices.batch or 1
        given = _given(calibration, original.convention, choices.preprocessing).numpy()
        batches = [given[start : start + size] for start in range(0, len(given), size)]
    metadata = describe(original, choices, format, len(folded))
    return Writing(model, example, choices.batch, choices.precision, metadata, batches), folded


def describe(original: Original, choices: Choices, format: Format, folded: int) -> dict[str, Any]:
    """What an exported file says of itself."""
    backbone, head, convention, meta = *original.trained[:2], original.convention, original.meta
    before = {} if meta is None else meta["config"]
    count, side = choices.batch or "B", original.size
    inside = f"uint8 ({count},{side},{side},3), RGB"
    outside = f"float32 ({count},3,{side},{side}), {convention.color}, (x − {convention.mean:g})/{convention.std:g}"
    length = "of length 1" if choices.unit else "not normalised"
    mirror = ", of image and mirrored image added" if choices.mirror else ""
    weights = "what the network's code makes of them" if not format.embeds else None
    return {
        "facelab": __version__,
        "format": format.name,
        "takes": weights or (inside if choices.preprocessing else outside),
        "gives": weights or f"float32 ({count},{backbone.embedding_size}), {length}{mirror}",
        "input": asdict(convention),
        "size": side,
        "embedding_size": backbone.embedding_size,
        "preprocessing": choices.preprocessing,
        "mirror": choices.mirror,
        "unit": choices.unit and format.embeds,
        "batch": choices.batch,
        "precision": choices.precision,
        "folded": folded,
        "backbone": original.node,
        "head": None if isinstance(head, nn.Identity) else type(head).__name__,
        "checkpoint": original.path.name,
        "checkpoint_sha256": digest_of(original.path),
        "step": None if meta is None else meta["step"],
        "run": {key: before.get(key) for key in ("name", "job", "seed")} if before else None,
    }


def _original(config: DictConfig) -> Original:
    """The model that a configuration names."""
    check_kind("ema", config.ema, bool | None)
    path = file_of("checkpoint", config.checkpoint)
    meta = meta_of(path)
    if meta is None:
        trained = out_of_weights("checkpoint", path, config.backbone, "backbone", config.ema)
        node: Any = OmegaConf.to_container(config.backbone, resolve=True)
        size = int(config.data.size)
    else:
        if "_target_" in config.backbone or config.backbone.input is not None:
            raise ValueError(f"checkpoint={path} says itself which network it is of: leave backbone… out")
        trained = out_of_checkpoint("checkpoint", path, meta, config.ema)
        node, size = meta["config"]["backbone"], int(meta["config"]["data"]["size"])
    node = {key: value for key, value in node.items() if key not in COMMON}
    trained.backbone.eval()
    trained.head.eval()
    return Original(path, trained, node, meta, size)


def _model(original: Original, choices: Choices) -> EmbeddingModel:
    """A copy of the original in the form that was chosen, in float32 and with its norms."""
    backbone, head = copy.deepcopy(original.trained.backbone), copy.deepcopy(original.trained.head)
    form = (choices.preprocessing, choices.mirror, choices.unit)
    model = EmbeddingModel(backbone, head, original.convention, *form)
    return model.requires_grad_(False).eval()


def _given(images: np.ndarray, convention: Input, inside: bool) -> Tensor:
    """Images (B,H,W,3) uint8 RGB as the model takes them."""
    return torch.from_numpy(images if inside else as_outside(images, convention))


def _tolerance(config: DictConfig) -> Tolerance:
    if not 0 < config.parity.fmr < 1:
        raise ValueError(f"parity.fmr is {config.parity.fmr}: give a rate between 0 and 1, such as 0.01")
    return Tolerance(**{str(key): float(value) for key, value in config.parity.tolerance[config.precision].items()})


def _calibration(config: DictConfig, choices: Choices, original: Original) -> np.ndarray | None:
    if choices.precision != "int8":
        return None
    return calibration_faces(config.calibration.faces, config.calibration.images, choices.batch or 1, original.size)


def _before(config: DictConfig, original: Original, faces: Faces) -> np.ndarray:
    """(M,D) unit embeddings of the original by the way that training and evaluation take, or of `parity.against`."""
    if config.parity.against is not None:
        path = file_of("parity.against", config.parity.against)
        told = Runtime(convention=original.convention, size=original.size)
        return _embed(load_embedder(path, told), faces, config, bool(config.mirror))
    network = nn.Sequential(original.trained.backbone, original.trained.head)
    rows = []
    with torch.inference_mode(), Tracker("original", config.progress) as tell:
        for start in range(0, len(faces.images), BATCH):
            images = torch.from_numpy(faces.images[start : start + BATCH])
            rows.append(nn.functional.normalize(embed(network, images, config.mirror)))
            tell(start + len(images), len(faces.images))
    found = torch.cat(rows).numpy()
    if not np.isfinite(found).all():
        raise ValueError(f"checkpoint={original.path}: the original's own embeddings are not finite: it is damaged")
    return found


def _embed(embedder: Embedder, faces: Faces, config: DictConfig, mirror: bool = False) -> np.ndarray:
    """(M,D) unit embeddings of an opened file."""
    rows = []
    with Tracker("exported", config.progress) as tell:
        for start in range(0, len(faces.images), BATCH):
            rows.append(embedder.embed(faces.images[start : start + BATCH], mirror))
            tell(start + len(rows[-1]), len(faces.images))
    return np.concatenate(rows)


def _where(
    original: Original,
    choices: Choices,
    format: Format,
    file: Path,
    folded: Mapping[str, str],
    faces: Faces,
    tolerance: Tolerance,
) -> str:
    """Where a file and its original part, in words; prints the layers."""
    images = faces.images[: choices.batch or LOOKED_AT]
    if choices.batch is not None:
        images = np.resize(images, (choices.batch, *images.shape[1:]))
    given = _given(images, original.convention, choices.preprocessing or not format.embeds)
    seen = watched(_model(original, choices), given)
    found = layers(format, file, as_seen(*seen, given, folded), folded)
    for layer in found:
        print(f"{layer.difference:10.2g}  {layer.name}")
    return parts_at(found, tolerance)


def _tell(original: Original, file: Path, metadata: Mapping[str, Any], found: Parity) -> None:
    taken = original.convention
    print(
        f"{original.trained.about}\n"
        f"exported to {file}, which takes {taken.color} (x − {taken.mean:g})/{taken.std:g}\n"
        f"takes {metadata['takes']}; gives {metadata['gives']}\n"
        f"cosine distance to the original at most {found.max:.1e}, {found.mean:.1e} on average; accuracy "
        f"{100 * found.accuracy_before:.2f} → {100 * found.accuracy_after:.2f} %, FNMR at FMR {found.fmr:g} "
        f"{100 * found.fnmr_before:.2f} → {100 * found.fnmr_after:.2f} %"
    )
