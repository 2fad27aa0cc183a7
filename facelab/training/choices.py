"""What is shown of a run before its first step: the choices in words, with the numbers that follow from them."""

from collections.abc import Mapping
from typing import Any

import torch

from facelab.backbone.complexity import count_macs, count_parameters
from facelab.training.groups import about_head
from facelab.training.inspection import about_images
from facelab.training.network import about_input
from facelab.training.objective import about_loss


def kind(node: Mapping[str, Any]) -> str:
    """The class that a group's choice stands for."""
    return str(node["_target_"]).rsplit(".", 1)[-1]


def set_name(node: Mapping[str, Any]) -> str:
    """A data set's own name where it has one."""
    return str(node["known"]["name"]) if node["known"] else kind(node)


def choices(run: Any) -> dict[str, str]:
    """A row for each question, of a run whose parts are built."""
    plain, data, options = run.plain, run.data, run.options
    network = run.network
    device = "GPU" if options.on_gpu else f"CPU, {torch.get_num_threads()} threads"
    size, who = data.source.size, "classes" if data.closed else "identities"
    return {
        "backbone": f"{kind(plain['backbone'])}, {count_parameters(network):,} parameters, "
        f"{count_macs(network, size) / 1e9:.3f} GMACs at {size}×{size}, D={network.embedding_size}"
        f"{about_input(network)}",
        **about_head(run.head),
        "loss": about_loss(plain["loss"]),
        **({} if run.teaching is None else {"teacher": run.teaching.about}),
        "data": f"{set_name(plain['data'])}: {data.num_classes:,} {who}, {len(data.subset):,} images to train on",
        **about_images(data.source, plain["data"]["known"], run.found),
        **({"taken": str(data.taken)} if data.taken.told else {}),
        **run.sampling,
        "held out": "nobody" if data.selection is None else f"{data.selection.about} choose best.ckpt",
        "reported": f"{data.report.name}: {data.report.about}",
        "schedule": f"{data.steps:,} steps of {options.batch_size} images = {data.steps / data.steps_per_epoch:.3g} "
        f"epochs; {kind(plain['optimizer'])}, rate {run.module.recipe.lr:g}, "
        f"{kind(plain['optimizer']['schedule']).lower()}"
        + (f"; weights averaged with decay {options.ema:g}" if options.ema is not None else ""),
        "device": f"{device}, {options.lightning_precision}{options.about_processes}",
        "start": f"resumed at step {run.progress.step:,}" if run.start is not None else _first_step(plain),
    }


def _first_step(plain: Mapping[str, Any]) -> str:
    weights, classifier = plain["backbone"]["weights"], plain["loss"]["classifier"]
    kept = "frozen class centres" if classifier["frozen"] else "class centres"
    return (
        "from the first step"
        + (f", with the weights of {weights}" if weights else "")
        + (f", {plain['backbone']['freeze']} stages frozen" if plain["backbone"]["freeze"] else "")
        + (f", with the {kept} of {classifier['weights']}" if classifier["weights"] else "")
    )
