"""One evaluation: a checkpoint, or published weights, on a benchmark, and the record that it leaves."""

import time
from collections import deque
from collections.abc import Collection, Mapping
from contextlib import closing, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor, nn

from facelab.backbone.complexity import count_macs, count_parameters
from facelab.backbone.weights import Input
from facelab.benchmark.scores import save_all
from facelab.data.torch_loader import EvalLoader
from facelab.digest import digest_of
from facelab.report import run as report
from facelab.training import closed_set, fit
from facelab.training.datamodule import faces
from facelab.training.exported import Exported, Given, out_of_another
from facelab.training.groups import WithGroups, about_head, with_groups
from facelab.training.kept import KeptEmbeddings, Pixels
from facelab.training.logging import Copy
from facelab.training.module import embed
from facelab.training.network import about_input, completed, convention
from facelab.training.options import EvaluationOptions, check_kind, check_kinds
from facelab.training.preemption import Interrupted
from facelab.training.progress import Tracker, show_choices, show_result, track
from facelab.training.record import RunDirectory
from facelab.training.retraced import compare_classes, open_source, retrace
from facelab.training.strategy import keep_memory
from facelab.training.taken_over import NO_HEAD, compare_backbones, compare_heads, take_over
from facelab.training.trained import Trained, file_of, meta_of, out_of_checkpoint, out_of_weights
from facelab.trusted import safe


@dataclass
class Evaluation:
    """The parts of an evaluation, built and checked, before anything is embedded."""

    config: DictConfig
    plain: dict[str, Any]  # the same, resolved, and what the checkpoint says of itself
    options: EvaluationOptions
    network: nn.Module  # (B,3,H,W) in [−1,1] → (B,D)
    backbone: Any
    head: nn.Module
    benchmark: Any
    pairs: Any  # a PairSet, a LabelledSet, an ImageList …
    speaks: closed_set.Speaker | None  # names classes, where the benchmark asks for them
    loader: EvalLoader
    about: str  # the checkpoint, in words


def evaluate(config: DictConfig, typed: Collection[str], where: Path) -> dict[str, float]:
    """Embeds a benchmark's images, scores its pairs, and keeps what was found.

    Args:
        config: the composed configuration, conf/evaluate.yaml; what a checkpoint of facelab says of its training is put
            in place of values that nobody has typed.
        typed: the keys that somebody has.
        where: the record's folder.

    Returns:
        The final numbers, as in metrics.json.

    Raises:
        ValueError, FileNotFoundError: something in the configuration or its files is wrong; said before embedding.
        Interrupted: Ctrl-C; nothing of the result is kept.
    """
    fit.quiet()
    check_kind("check", config.check, bool)
    path = file_of("checkpoint", config.checkpoint)
    meta = meta_of(path)
    if meta is not None:
        take_over(config, meta, typed)
        compare_heads(config, path, meta, typed)
    other = out_of_another(path, config, typed) if meta is None else None
    if config.data.root is None:  # a benchmark that lies beside the training data asks whether there is such a key
        with open_dict(config):
            config.data.pop("root")
    plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    check_kinds(plain)
    plain["checkpoint_sha256"] = digest_of(path)
    if meta is not None:
        plain["trained"] = {"step": meta["step"], "config": meta["config"]}
    # Whoever asks again is answered at once: the folder, and the checkpoint's content, say whether it is the same.
    with closing(RunDirectory(where, plain)) as directory:
        if directory.finished:
            return fit.show_finished(directory, "This evaluation is finished; nothing was embedded.")
        return _evaluate(_build(config, plain, path, meta, other), directory)


def check(config: DictConfig) -> bool:
    """Says all that a benchmark lacks, and whether it lacks nothing; no model is needed.

    Args:
        config: conf/evaluate.yaml, of which only the benchmark counts.

    Raises:
        ValueError: its path is missing, or it is of a kind that has no files to look for.
    """
    benchmark = instantiate(config.benchmark)
    if not hasattr(benchmark, "check"):
        raise ValueError(
            f"check=true: {type(benchmark).__name__} has no layout of its own; it names what it misses when it is "
            "evaluated, leave check out"
        )
    found = benchmark.check()
    for line in found:
        print(line)
    print(f"{benchmark.name}: {f'{len(found)} to be mended' if found else 'complete'}", flush=True)
    return not found


def _build(
    config: DictConfig, plain: dict[str, Any], path: Path, meta: dict[str, Any] | None, other: Trained | None
) -> Evaluation:
    options = EvaluationOptions(config.batch_size, config.accelerator, config.precision, config.progress)
    benchmark = instantiate(config.benchmark)
    check_kind("ema", config.ema, bool | None)
    if meta is None:
        if config.head._target_ != NO_HEAD:
            raise ValueError(f"checkpoint={path}: published weights are of a backbone alone: add head=none")
        trained = other or out_of_weights("checkpoint", path, config.backbone, "backbone", config.ema)
    else:
        compare_backbones(config, path, completed(meta["config"]["backbone"]), Input(**meta["input"]))
        trained = out_of_checkpoint("checkpoint", path, meta, config.ema)
    backbone, head, about = trained
    alone = benchmark.path is not None or getattr(benchmark, "evaluates_only", False)
    own = None if alone else _held_out(config, path, meta, benchmark)
    pairs, speaks = benchmark.open(own), None
    if isinstance(backbone, Given):
        backbone.of(pairs, path)
    if meta is not None and closed_set.asks_for_classes(benchmark):
        speaks = closed_set.speaker_out_of(path, meta, backbone.embedding_size)
    shape, size = pairs.load(0).shape, config.data.size
    if shape != (size, size, 3):
        raise ValueError(
            f"benchmark: its image 0 has shape {shape}, but the network takes {(size, size, 3)}: leave benchmark.size "
            "as it is, or give images of that size"
        )
    loader = EvalLoader(
        pairs,
        options.batch_size,
        rank=0,
        world=1,
        threads=config.loader.threads,
        prefetch=config.loader.prefetch,
        pin=options.on_gpu,
    )
    network: nn.Module = nn.Sequential(backbone.to(memory_format=torch.channels_last), head).eval()
    if getattr(benchmark, "compares_groups", False):
        network = with_groups(backbone, head, "benchmark.groups.beta")
    return Evaluation(config, plain, options, network, backbone, head, benchmark, pairs, speaks, loader, about)


def _evaluate(evaluation: Evaluation, directory: RunDirectory) -> dict[str, float]:
    copy, plain = Copy(None), evaluation.plain
    try:
        copy.logger = _logger(evaluation, directory)
        directory.start(plain)
        directory.describe(None, {"wandb": copy.version, "input": convention(evaluation.backbone)})
        show_choices({**_choices(evaluation), **copy.about}, str(directory.path))
        copy.follow(directory.path / "metrics.csv")  # which an evaluation has not: it begins anew
        began = time.perf_counter()
        rows, embedded = _embeddings(evaluation)
        answers = closed_set.answers(evaluation.benchmark, rows, evaluation.speaks)
        seconds = time.perf_counter() - began
        groups: list[np.ndarray] = []
        if isinstance(evaluation.network, WithGroups):
            answers, *groups = np.split(answers, [evaluation.backbone.embedding_size], axis=1)
        with Tracker("comparing", evaluation.options.progress, "comparisons") as tell:
            told = {"progress": tell} if getattr(evaluation.benchmark, "tells_progress", False) else {}
            result = evaluation.benchmark.evaluate(answers, evaluation.pairs, *groups, **told)
        metrics = {
            **result.all_metrics(),
            **({} if _foreign(evaluation.backbone) else {"parameters": count_parameters(evaluation.network)}),
            "images": len(evaluation.pairs),
            "seconds": round(seconds, 1),
            **({"images_per_s": round(len(evaluation.pairs) / max(seconds, 1e-9), 1)} if embedded else {}),
        }
        save_all(directory.path / "scores", result)
        directory.finish(metrics)
        report.draw(directory.path)
        copy.publish(metrics, directory.path)
        show_result(metrics, result.all_notes(), str(directory.path))
        return metrics
    except KeyboardInterrupt:
        raise Interrupted("interrupted; the same command, started again, begins this evaluation anew") from None
    finally:
        copy.finish()


def _embeddings(evaluation: Evaluation) -> tuple[Tensor, bool]:
    """(M,D) float32, an embedding for each image of the benchmark; and whether they were computed for it."""
    if isinstance(evaluation.backbone, Given):
        return evaluation.backbone.rows, False
    plain, options, images = evaluation.plain, evaluation.options, len(evaluation.pairs)
    described = {key: plain.get(key) for key in ("checkpoint_sha256", "ema", "backbone", "head", "precision")}
    described |= {"input": convention(evaluation.backbone), "mirror": evaluation.benchmark.mirror}
    described |= {"bf16": options.in_bf16, "gpu": options.on_gpu, "network": type(evaluation.network).__name__}
    kept, pixels = KeptEmbeddings(plain["embeddings"], described), Pixels()
    if kept.has_some(images):
        for batch in track(evaluation.loader, images, "looking whether they are embedded", options.progress):
            pixels.add(batch)
        rows = kept.load(pixels.digest, images)
        if rows is not None:
            print(f"embeddings     {kept.file(pixels.digest, images)}, computed before", flush=True)
            return rows, False
        pixels = Pixels()
    rows = _embed(evaluation, pixels)
    kept.save(pixels.digest, rows)
    return rows, True


def _embed(evaluation: Evaluation, pixels: Pixels) -> Tensor:
    """(M,D) float32, an embedding for each image of the benchmark; batches go to all GPUs in turn."""
    options = evaluation.options
    devices = _devices(evaluation)
    if options.on_gpu:
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    else:
        keep_memory()
    networks = [deepcopy(evaluation.network).to(device) for device in devices[1:]]
    networks.insert(0, evaluation.network.to(devices[0]))
    rows, done, waiting = torch.empty(0), 0, deque[Tensor]()
    half = torch.autocast(devices[0].type, torch.bfloat16) if options.in_bf16 else nullcontext()
    batches = track(pixels.passing(evaluation.loader), len(evaluation.pairs), "embedding", options.progress)
    with torch.inference_mode(), half:
        for number, batch in enumerate(chain(batches, [None] * len(devices))):
            # The others compute while the oldest batch is waited for.
            if len(waiting) == len(devices) or (batch is None and waiting):
                found = waiting.popleft()
                if not done:  # a million rows are there once, and not once more in pieces
                    rows = found.new_empty(len(evaluation.pairs), found.shape[1])
                rows[done : done + len(found)] = found
                done += len(found)
            if batch is not None:
                images = batch.images.to(devices[number % len(devices)], non_blocking=True)
                waiting.append(embed(networks[number % len(devices)], images, evaluation.benchmark.mirror))
    return rows


def _devices(evaluation: Evaluation) -> list[torch.device]:
    """Every GPU that this process sees, or the CPU; of a model under another runtime that which it chose itself."""
    if not evaluation.options.on_gpu:
        return [torch.device("cpu")]
    count = 1 if _foreign(evaluation.backbone) else torch.cuda.device_count()
    return [torch.device("cuda", number) for number in range(count)]


def _logger(evaluation: Evaluation, directory: RunDirectory) -> Any:
    plain = evaluation.plain
    return instantiate(evaluation.config.logger, _partial_=True)(
        run=directory.path,
        config=plain,
        group=plain["name"],
        job=plain["job"],
        job_type="evaluate",
        tags=[type(evaluation.backbone).__name__, evaluation.pairs.name],
    )


def _choices(evaluation: Evaluation) -> dict[str, str]:
    options, backbone, pairs = evaluation.options, evaluation.backbone, evaluation.pairs
    size = evaluation.config.data.size
    device = f"{len(_devices(evaluation))} GPUs" if options.on_gpu else f"CPU, {torch.get_num_threads()} threads"
    mirror = ", mirrored images added" if evaluation.benchmark.mirror else ""
    precision = "bf16" if options.in_bf16 else "fp32"
    if _foreign(backbone):
        about, precision = backbone.about, "as the file says"
    else:
        about = (
            f"{type(backbone).__name__}, {count_parameters(backbone):,} parameters, "
            f"{count_macs(backbone, size) / 1e9:.3f} GMACs at {size}×{size}, D={backbone.embedding_size}"
        )
    return {
        "checkpoint": evaluation.about,
        "backbone": f"{about}{about_input(backbone)}",
        **about_head(evaluation.head),
        "benchmark": f"{pairs.name}: {pairs.about}{mirror}",
        "device": f"{device}, {precision}, {options.batch_size} images at once",
    }


# Which model


def _foreign(backbone: Any) -> bool:
    """Whether it is none of torch's networks, whose parameters and products can be counted."""
    return isinstance(backbone, Exported | Given)


# On which faces


def _held_out(config: DictConfig, path: Path, meta: Mapping[str, Any] | None, benchmark: Any) -> Any:
    """What a run has held out of its own training: identities, of which it has drawn pairs, or images to be named."""
    closed_set.check_same_kind(benchmark, path, meta)
    if meta is None:
        raise ValueError(
            f"checkpoint={path}: published weights have no held-out identities of their own: give benchmark.path=…, a "
            ".bin or a folder of images"
        )
    if closed_set.asks_for_classes(benchmark):
        source, kept = open_source(config, path, meta)
        before = meta["config"]["data"]
        shares = closed_set.share_out(source, kept, before["holdout"], before.get("take"))
        compare_classes(len(shares.taken.identities), path, meta)
        return shares.reports
    others = meta["config"]["data"].get("report")
    if others is not None:  # of whom its run has reported
        source = instantiate(safe("checkpoint", others, "data", path))
        return faces(source, source.labels, np.unique(source.labels))
    found = retrace(config, path, meta)
    if len(found.held) == 0:
        raise ValueError(
            f"checkpoint={path} was trained without held-out identities: give benchmark.path=…, a .bin or a folder of "
            "images"
        )
    return faces(found.source, found.labels, found.held)
