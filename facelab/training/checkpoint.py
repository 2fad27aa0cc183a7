"""The checkpoint: one safetensors file, readable without facelab and unable to run code.

Tensors have the names `model.<parameter or buffer>` and `optimizer.<parameter>.<quantity>`, and `sampler.<quantity>`
where a sampler adapts; everything else (step, position in the plan, configuration, running means of the log, best
score) is one JSON text in the file's metadata, beside the checksums (`facelab.training.stored`).

Class centres that are sharded over W > 1 ranks, and what else belongs to a class, lie in W further files beside it,
`<name>.shard-<r>-of-<W>.<step>`, each with its first row in its metadata. They are written first; the main file names
them, so its rename makes all of them valid at once. Any number of ranks can read them: each reads the rows that it
holds.

Before a new last.ckpt takes its name, the old one gets a second one, previous.ckpt; its shards stay under their names.
So at any moment one of the two is complete, and after the first two savings a complete predecessor is there as well:
main file and shards of the saving before. Room is needed for three: the two, and the one that is being written.

A saving has two halves. `take` gathers what this rank has to write, while training stands still; writing it asks
nothing of the other ranks, so a thread can do it while they train (`facelab.training.background`), in which no
collective could be called. That the shards of all ranks are complete rank 0 sees in the folder: each of them, and the
main file, holds the number of the saving, which the ranks have agreed on in `take`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from facelab.loss.collective import rank_and_world
from facelab.training.saving import Part, Saving, agree, number, write, write_file
from facelab.training.stored import FORMAT, Tensors, files_of, read_meta

__all__ = [
    *("Progress", "Tensors", "amend", "has_average", "load", "load_network", "load_sampler", "read_meta", "save"),
    "take",
]

AVERAGE = "model.average."  # begins the names of averaged weights
SAMPLER = "sampler."


@dataclass
class Progress:
    """Where a run stands: all that a resumed run needs beside tensors."""

    step: int = 0  # optimizer steps done = absolute position in the plan
    images: int = 0  # images seen
    seconds: float = 0.0  # time spent training, over all starts
    validated: int = -1  # the step of the latest validation
    best_step: int = -1  # the step of best.ckpt
    best_score: float = -1.0
    best: dict[str, float] = field(default_factory=dict)  # what that validation measured
    window: dict[str, float] = field(default_factory=dict)  # sums of the log's unfinished window
    histograms: dict[str, list[list[int]]] = field(default_factory=dict)  # of angles and lengths, as they are packed
    steps: int = 0  # of the whole run, as it was to be then; 0 in older checkpoints
    extended: list[list[int]] = field(default_factory=list)  # [steps done, steps of the run until then], each time


def save(
    path: Path,
    model: Any,
    optimizer: torch.optim.Optimizer | None,
    meta: Mapping[str, Any],
    sampler: Mapping[str, Tensor] = MappingProxyType({}),
) -> None:
    """Writes a checkpoint, called on every rank; see `take`."""
    write([take(path, model, optimizer, meta, sampler)])


def _as_it_is(value: Tensor) -> Tensor:
    return value.detach().cpu().contiguous()


def take(
    path: Path,
    model: Any,
    optimizer: torch.optim.Optimizer | None,
    meta: Mapping[str, Any],
    sampler: Mapping[str, Tensor] = MappingProxyType({}),
    previous: Path | None = None,
    promotes: bool = True,
    copy: Callable[[Tensor], Tensor] = _as_it_is,
) -> Saving:
    """What this rank writes of a checkpoint; called on every rank.

    Args:
        path: final name; the file appears there complete or not at all.
        model: its state_dict is stored; what `model.sharded` names holds this rank's rows alone.
        optimizer: stored too if given; without it the file serves evaluation.
        meta: JSON-able values, `step` among them.
        sampler: what a sampler needs to go on, the same on every rank.
        previous: the name that a checkpoint of an earlier step keeps, whose place this one takes; None: it goes.
        promotes: whether that is the one at `path`; not where it is damaged.
        copy: gives a tensor's values on the CPU, contiguous: a copy where they are written while training goes on.
    """
    rank, world = rank_and_world()
    sharded = set(model.sharded) if world > 1 else set()
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    owner = {key: key.removeprefix("model.") for key in tensors}  # whose shard a tensor belongs to
    tensors |= {f"{SAMPLER}{name}": value for name, value in sampler.items()}
    if optimizer is not None:
        for name, quantities in _optimizer_state(model, optimizer).items():
            for quantity, value in quantities.items():
                key = f"optimizer.{name}.{quantity}"
                tensors[key] = value
                owner[key] = name
    mine = {key for key in tensors if owner.get(key) in sharded and tensors[key].dim() > 0}
    names, same, shard, main = [], {}, None, None
    if mine:
        names = [f"{path.name}.shard-{r}-of-{world}.{meta['step']}" for r in range(world)]
        same = {"saving": number()}
        about = {"start": model.shard_start, "rank": rank, **same}
        shard = Part(path.with_name(names[rank]), {key: copy(tensors[key]) for key in tensors if key in mine}, about)
    if rank == 0:
        whole = {key: copy(value) for key, value in tensors.items() if key not in mine}
        main = Part(path, whole, {"format": FORMAT, "shards": names, **same, **meta})
    return Saving(shard, main, previous, promotes)


def amend(path: Path, meta: Mapping[str, Any], source: Path | None = None) -> None:
    """Gives a checkpoint another JSON part; its tensors stay. Called on every rank.

    Args:
        path: its final name.
        meta: the new part, of the same step.
        source: where its tensors are; None: at `path`.

    Raises:
        OSError: on every rank, where it cannot be written.
    """
    source, error = source or path, None
    if rank_and_world()[0] == 0:
        before, stored = read_meta(source), Tensors([source])
        same: dict[str, Any] = {key: before[key] for key in ("shards", "saving") if key in before}
        try:
            write_file(path, {key: stored.read(key, None) for key in stored.keys()}, {"format": FORMAT, **same, **meta})  # noqa: SIM118
        except OSError as caught:
            error = caught
    agree(error)


def load(path: Path, model: Any, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Restores the model, and the optimizer if given, in place; gives the JSON part. Called on every rank.

    Raises:
        ValueError: where the names or shapes of the file and of the model differ; they are named.
        FileNotFoundError: where the checkpoint or one of its shards is missing.
    """
    meta = read_meta(path)
    stored = Tensors(files_of(path))
    state = model.state_dict()
    present = {key for key in stored.keys() if key.startswith("model.")}  # noqa: SIM118
    _compare_names(path, {f"model.{name}" for name in state}, present, "backbone, head and loss")
    rows = (
        dict.fromkeys(model.sharded, (model.shard_start, model.shard_stop))
        if rank_and_world()[1] > 1 or meta["shards"]
        else {}
    )
    if rows:
        # Fewer classes than the file's would find rows enough, and read the wrong ones.
        classes = _last_class(model)
        for name in rows:
            held = stored.rows(f"model.{name}")
            if held != classes:
                raise ValueError(
                    f"checkpoint {path}: {name} has {held} rows, the model {classes} classes; set data as it was in "
                    "its training"
                )
    with torch.no_grad():
        for name, target in state.items():
            value = stored.read(f"model.{name}", rows.get(name))
            _fill(path, name, target, value, "backbone, loss and data")
    if optimizer is not None:
        _restore_optimizer(stored, model, optimizer, rows)
    return meta


def load_sampler(path: Path) -> dict[str, Tensor]:
    """What `save` was given of the sampler; nothing where it was given nothing."""
    stored = Tensors([path])
    names = [key for key in stored.keys() if key.startswith(SAMPLER)]  # noqa: SIM118
    return {key.removeprefix(SAMPLER): stored.read(key, None) for key in names}


def has_average(path: Path) -> bool:
    """Whether a checkpoint holds averaged weights beside those in training, as last.ckpt does with trainer.ema."""
    return any(key.startswith(AVERAGE) for key in Tensors([path]).keys())  # noqa: SIM118


def check_network(path: Path, backbone: nn.Module, head: nn.Module, averaged: bool) -> None:
    """Compares names and shapes of the file with those of networks without values; arguments as of `load_network`.

    A file cannot hold more numbers than it has bytes for: so networks that were found to fit fit into memory too.

    Raises:
        ValueError: they differ; the names are told.
        FileNotFoundError: where the checkpoint is missing.
    """
    stored = Tensors([path])
    for part, key, target in _of_network(path, stored, backbone, head, averaged):
        _compare_shapes(path, key.removeprefix("model."), target, stored.shape(key), part)


@torch.no_grad()
def load_network(path: Path, backbone: nn.Module, head: nn.Module, averaged: bool) -> None:
    """Restores a backbone and its head, in place, without a loss and whatever the number of ranks that wrote.

    Args:
        path: a main file.
        backbone: as it was in training.
        head: the same.
        averaged: whether the averages are read (`has_average`) in place of the weights in training.

    Raises:
        ValueError: where the names or shapes of the file and of the networks differ; they are named.
        FileNotFoundError: where the checkpoint is missing.
    """
    stored = Tensors([path])
    for part, key, target in _of_network(path, stored, backbone, head, averaged):
        _fill(path, key.removeprefix("model."), target, stored.read(key, None), part)


def _of_network(
    path: Path, stored: Tensors, backbone: nn.Module, head: nn.Module, averaged: bool
) -> Iterator[tuple[str, str, Tensor]]:
    """Part, name in the file and target of each tensor, when the names of the part have been compared."""
    prefix = AVERAGE if averaged else "model."
    for part, network in (("backbone", backbone), ("head", head)):
        state = {f"{prefix}{part}.{name}": target for name, target in network.state_dict().items()}
        present = {key for key in stored.keys() if key.startswith(f"{prefix}{part}.")}  # noqa: SIM118
        _compare_names(path, set(state), present, part)
        for key, target in state.items():
            yield part, key, target


def _compare_names(path: Path, wanted: set[str], present: set[str], what: str) -> None:
    if wanted != present:
        missing, unknown = sorted(wanted - present), sorted(present - wanted)
        raise ValueError(
            f"checkpoint {path} is of another model: it lacks {_some(missing)} and has in excess {_some(unknown)}; "
            f"set {what} as in its training"
        )


def _fill(path: Path, name: str, target: Tensor, value: Tensor, what: str) -> None:
    _compare_shapes(path, name, target, value.shape, what)
    target.copy_(value)


def _compare_shapes(path: Path, name: str, target: Tensor, shape: Sequence[int], what: str) -> None:
    if tuple(shape) != tuple(target.shape):
        raise ValueError(
            f"checkpoint {path}: {name} has shape {tuple(shape)}, the model {tuple(target.shape)}; "
            f"set {what} as in its training"
        )


def _last_class(model: Any) -> int:
    """One past the last class of all ranks' shards: their number."""
    stop = torch.tensor(model.shard_stop, device=next(model.parameters()).device)
    if rank_and_world()[1] > 1:
        dist.all_reduce(stop, op=dist.ReduceOp.MAX)
    return int(stop)


def _optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """Parameter name → quantity (momentum_buffer, exp_avg, …) → tensor."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: {key: torch.as_tensor(value) for key, value in state.items() if value is not None}
        for parameter, state in optimizer.state.items()
    }


def _restore_optimizer(
    stored: Tensors, model: nn.Module, optimizer: torch.optim.Optimizer, rows: Mapping[str, tuple[int, int]]
) -> None:
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for key in stored.keys():  # noqa: SIM118
        if key.startswith("optimizer."):
            name, quantity = key.removeprefix("optimizer.").rsplit(".", 1)
            parameter = parameters[name]
            value = stored.read(key, rows.get(name))
            # Adam keeps its step count on the CPU, everything shaped like the parameter lies beside it, in its layout.
            if value.dim() == parameter.dim() > 0:
                value = torch.empty_like(parameter).copy_(value)
            elif value.dim():  # a number for each row
                value = value.to(parameter.device)
            optimizer.state[parameter][quantity] = value


def _some(names: list[str]) -> str:
    if not names:
        return "nothing"
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
