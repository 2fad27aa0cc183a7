"""The checkpoint: one safetensors file, readable without facelab and unable to run code.

Tensors have the names `model.<parameter or buffer>` and `optimizer.<parameter>.<quantity>`, and `sampler.<quantity>`
where a sampler adapts; everything else (step, position in the plan, configuration, running means of the log, best
score) is one JSON text in the file's metadata.

Class centres that are sharded over W > 1 ranks, and what else belongs to a class, lie in W further files beside it,
`<name>.shard-<r>-of-<W>.<step>`, each with its first row in its metadata. They are written first; the main file names
them, so its rename makes all of them valid at once. Any number of ranks can read them: each reads the rows that it
holds.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch import distributed as dist

from facelab.atomic import atomic
from facelab.loss.collective import rank_and_world

FORMAT = 1
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


def save(
    path: Path,
    model: Any,
    optimizer: torch.optim.Optimizer | None,
    meta: Mapping[str, Any],
    sampler: Mapping[str, Tensor] = MappingProxyType({}),
) -> None:
    """Writes a checkpoint, called on every rank.

    Args:
        path: final name; the file appears there complete or not at all.
        model: its state_dict is stored; what `model.sharded` names holds this rank's rows alone.
        optimizer: stored too if given; without it the file serves evaluation.
        meta: JSON-able values, `step` among them.
        sampler: what a sampler needs to go on, the same on every rank.
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
    files: list[str] = []
    if mine:
        files = [f"{path.name}.shard-{r}-of-{world}.{meta['step']}" for r in range(world)]
        start = model.shard_start
        _write(path.with_name(files[rank]), {k: tensors[k] for k in mine}, {"start": start, "rank": rank})
        dist.barrier()
    if rank == 0:
        whole = {key: value for key, value in tensors.items() if key not in mine}
        _write(path, whole, {"format": FORMAT, "shards": files, **meta})
        for old in path.parent.glob(f"{path.name}.shard-*"):
            if old.name not in files:
                old.unlink()
    if world > 1:
        dist.barrier()


def amend(path: Path, meta: Mapping[str, Any]) -> None:
    """Gives a checkpoint another JSON part; its tensors stay. Called on every rank."""
    rank, world = rank_and_world()
    if rank == 0:
        shards = read_meta(path)["shards"]
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        _write(path, tensors, {"format": FORMAT, "shards": shards, **meta})
    if world > 1:
        dist.barrier()


def read_meta(path: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where the file is damaged, or no checkpoint of facelab.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} is not there: give the path of a last.ckpt or best.ckpt")
    with _open(path) as file:
        text = (file.metadata() or {}).get("facelab")
    if text is None:
        raise ValueError(f"checkpoint {path} was not written by facelab: its metadata has no 'facelab' entry")
    meta = _said(path, text)
    if "format" not in meta:
        raise ValueError(f"checkpoint {path} is one shard of several: give the main file, the name before '.shard-'")
    if meta["format"] != FORMAT:
        raise ValueError(f"checkpoint {path} has format {meta['format']}, this facelab reads {FORMAT}: use its version")
    shards = meta.get("shards")
    names = shards if isinstance(shards, list) else [None]
    if not all(isinstance(name, str) and re.fullmatch(r"[^/\0]+\.shard-[\w.-]+", name) for name in names):
        raise ValueError(f"checkpoint {path}: its shards are {shards!r:.80}, no names of files; get it again")
    return meta


def _said(path: Path, text: str) -> dict[str, Any]:
    """The JSON part as it is."""
    try:
        meta = json.loads(text)
    except (ValueError, RecursionError):
        meta = None
    if not isinstance(meta, dict):
        raise ValueError(f"checkpoint {path}: what it says of itself is damaged: delete it, or take the other one")
    return meta


def load(path: Path, model: Any, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Restores the model, and the optimizer if given, in place; gives the JSON part. Called on every rank.

    Raises:
        ValueError: where the names or shapes of the file and of the model differ; they are named.
        FileNotFoundError: where the checkpoint or one of its shards is missing.
    """
    meta = read_meta(path)
    stored = Tensors([path, *(path.with_name(name) for name in meta["shards"])])
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
    prefix = AVERAGE if averaged else "model."
    stored = Tensors([path])
    for part, network in (("backbone", backbone), ("head", head)):
        state = {f"{prefix}{part}.{name}": target for name, target in network.state_dict().items()}
        present = {key for key in stored.keys() if key.startswith(f"{prefix}{part}.")}  # noqa: SIM118
        _compare_names(path, set(state), present, part)
        for key, target in state.items():
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
    prefix = AVERAGE if averaged else "model."
    stored = Tensors([path])
    for part, network in (("backbone", backbone), ("head", head)):
        state = {f"{prefix}{part}.{name}": target for name, target in network.state_dict().items()}
        present = {key for key in stored.keys() if key.startswith(f"{prefix}{part}.")}  # noqa: SIM118
        _compare_names(path, set(state), present, part)
        for key, target in state.items():
            _fill(path, key.removeprefix("model."), target, stored.read(key, None), part)


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


class Tensors:
    """Reads tensors out of the main file and the shards, by rows where a name is sharded.

    Args:
        paths: the main file, then its shards.

    Raises:
        FileNotFoundError: one of them is missing.
        ValueError: one of them is damaged.
    """

    def __init__(self, paths: list[Path]):
        for path in paths:
            if not path.is_file():
                raise FileNotFoundError(f"checkpoint {paths[0]} needs its shard {path.name}, which is missing")
        self.files = [_open(path) for path in paths]
        self.where: dict[str, list[tuple[int, Any]]] = {}
        for path, file in zip(paths, self.files, strict=True):
            start = _said(path, (file.metadata() or {}).get("facelab", "")).get("start", 0)
            for key in file.keys():  # noqa: SIM118
                self.where.setdefault(key, []).append((start, file))

    def keys(self) -> list[str]:
        """Names of all tensors."""
        return list(self.where)

    def rows(self, key: str) -> int:
        """Number of rows over all shards."""
        return sum(file.get_slice(key).get_shape()[0] for _, file in self.where[key])

    def shape(self, key: str) -> list[int]:
        """Of the tensor, or of its first shard."""
        return self.where[key][0][1].get_slice(key).get_shape()

    def read(self, key: str, rows: tuple[int, int] | None) -> Tensor:
        """The tensor, or its rows start…stop of all shards' rows; scalars are not cut."""
        parts = sorted(self.where[key], key=lambda part: part[0])
        if rows is None or not parts[0][1].get_slice(key).get_shape():
            return parts[0][1].get_tensor(key)
        start, stop = rows
        pieces = []
        for first, file in parts:
            view = file.get_slice(key)
            low, high = max(start, first), min(stop, first + view.get_shape()[0])
            if low < high:
                pieces.append(view[low - first : high - first])
        return torch.cat(pieces)


def _last_class(model: Any) -> int:
    """One past the last class of all ranks' shards: their number."""
    stop = torch.tensor(model.shard_stop, device=next(model.parameters()).device)
    if rank_and_world()[1] > 1:
        dist.all_reduce(stop, op=dist.ReduceOp.MAX)
    return int(stop)


def _open(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"checkpoint {path} cannot be read ({error}): delete it, or take the other one") from None


def _write(path: Path, tensors: dict[str, Tensor], meta: Mapping[str, Any]) -> None:
    contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    try:
        with atomic(path) as temporary:
            save_file(contiguous, temporary, metadata={"facelab": json.dumps(meta)})
    except (OSError, SafetensorError) as error:  # a full disk, mostly
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"checkpoint {path} cannot be written ({reason}): mend that (free some space), and start the same command "
            "again; it goes on from the checkpoint before"
        ) from error


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
