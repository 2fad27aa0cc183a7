"""Weights from files: published or trained ones into a network, and the input convention that they were trained with.

Read are safetensors (facelab's own checkpoints among them), torch's files (state_dict or a whole training checkpoint,
unpickled with `weights_only`, so that nothing in them can run code) and `.npz` (MXNet's arg:/aux: names, or our own).
The content decides what a file is, not its suffix: facelab's `.ckpt` is safetensors, Lightning's is a pickle.
"""

import json
import pickle
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from facelab.backbone.families import explain, in_our_names

OWN = "model.backbone."  # in front of the backbone's names in a checkpoint of facelab
CONVENTION = "input"  # in the metadata of a safetensors file: what the network takes, as JSON
AVERAGED = "model.average.backbone."  # the same of its moving average, which is better where there is one
GRAPH = ".graph.jsonl"  # beside an .npz: its MXNet graph, one node a line
COUNTER = "num_batches_tracked"  # of a batch norm; files of old or other tools lack it, and nothing depends on it


@dataclass(frozen=True)
class Input:
    """What a network takes: (pixel − mean)/std of pixels 0…255, the channels in this order.

    Attributes:
        color: "rgb" or "bgr".
        mean: in pixel values.
        std: in pixel values.

    Raises:
        ValueError: where the order of colours is another word, or std is not positive.
    """

    color: str
    mean: float
    std: float

    def __post_init__(self) -> None:
        if self.color not in ("rgb", "bgr"):
            raise ValueError(f"backbone.input.color is {self.color!r}: give rgb or bgr")
        if not self.std > 0:
            raise ValueError(
                f"backbone.input.std is {self.std}: give a positive number of pixel values (127.5 is usual)"
            )


HOUSE = Input("rgb", 127.5, 127.5)  # what facelab hands to every network: RGB in [−1,1]


class Convert:
    """Makes images (B,3,H,W) in the house's convention into those that a network was trained with, before it runs."""

    def __init__(self, convention: Input):
        self.flip = convention.color != HOUSE.color
        self.factor = HOUSE.std / convention.std
        self.shift = (HOUSE.mean - convention.mean) / convention.std

    def __call__(self, network: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        """The hook: (network, (images,)) → images."""
        images = inputs[0].flip(1) if self.flip else inputs[0]
        return images * self.factor + self.shift


def set_input(network: nn.Module, input: Input) -> None:
    """Lets a network go on taking images in the house's convention, whatever its weights were trained with.

    A hook in front of it converts; names and values of its parameters stay. A second call replaces the first. To be
    called before `compile`, which does not look at hooks again.

    Args:
        network: (B,3,H,W) → (B,D); `network.input_convention` becomes `input`.
        input: what its weights expect.
    """
    known = vars(network)  # neither parameters nor modules: these two go past nn.Module's bookkeeping
    hook = known.pop("input_hook", None)
    if hook is not None:
        hook.remove()
    if input != HOUSE:
        known["input_hook"] = network.register_forward_pre_hook(Convert(input))
    known["input_convention"] = input


def load_weights(network: nn.Module, path: str | PathLike[str]) -> Input:
    """Reads a file of weights into a network, in place, or refuses it and leaves the network as it was.

    Names in the file may all begin with one prefix (`module.`, `backbone.`, `state_dict.model.` …): it is the one under
    which the file holds every name of the network. Whatever does not begin with it, such as class centres, is left.

    Args:
        network: whose parameters and buffers are overwritten; half-precision values of a file are converted.
        path: the file.

    Returns:
        The input convention that the file states, else the house's; `set_input` makes it true.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read or wants to run code, or names or shapes are not those of the network.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"backbone.weights={path}: no such file")
    if path.is_dir():
        raise ValueError(f"backbone.weights={path}: is a folder; give the file in it")
    content = _read(path)
    if any(key.startswith(("arg:", "aux:")) for key in content.tensors):
        content = _from_mxnet(content.tensors, network, path)
    _copy(content._replace(tensors=in_our_names(content.tensors)), network, path)
    return content.convention


class _Content(NamedTuple):
    """What a file holds."""

    tensors: dict[str, Tensor]  # all of them, by name
    convention: Input = HOUSE
    prefix: str | None = None  # of the network's names, where the format fixes it
    about: str = ""  # what the file says of the network it comes from


def _read(path: Path) -> _Content:
    try:
        kind = _kind(path)
        if kind == "safetensors":
            return _read_safetensors(path)
        if kind == "npz":
            with np.load(path, allow_pickle=False) as arrays:
                return _Content({key: torch.as_tensor(arrays[key]) for key in arrays.files})
        return _Content(_flat(torch.load(path, map_location="cpu", weights_only=True)))
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise ValueError(
            f"backbone.weights={path}: its pickle asks for {named[1] if named else 'more than tensors'}, which can run "
            "code; nothing was read. Save the state_dict alone, on a machine where you trust the file"
        ) from error
    except Exception as error:  # each format has its own ways to be damaged
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"backbone.weights={path}: cannot be read ({reason:.200}); get the file again") from error


def _kind(path: Path) -> str:
    """Safetensors, npz or torch, by content."""
    with open(path, "rb") as file:
        head = file.read(9)
    if head[:2] == b"PK":
        with ZipFile(path) as archive:
            return "npz" if all(name.endswith(".npy") for name in archive.namelist()) else "torch"
    if head[8:] == b"{":  # behind the length of the header, in 8 bytes
        return "safetensors"
    if head[:1] == b"\x80":  # torch before 1.6 wrote plain pickles
        return "torch"
    raise ValueError("it is none of safetensors, torch.save's, .npz")


def _read_safetensors(path: Path) -> _Content:
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {}
    text = metadata.get("facelab")
    if text is None:
        return _Content(tensors, Input(**json.loads(metadata[CONVENTION])) if CONVENTION in metadata else HOUSE)
    meta = json.loads(text)
    convention = Input(**meta["input"]) if "input" in meta else HOUSE
    node = {
        k: v for k, v in meta.get("config", {}).get("backbone", {}).items() if k not in ("weights", "input", "freeze")
    }
    name = str(node.pop("_target_", "")).rpartition(".")[2]
    about = f"a run of facelab with {name} {node}".replace("'", "") if name else ""
    prefix = AVERAGED if any(key.startswith(AVERAGED) for key in tensors) else OWN
    return _Content(tensors, convention, prefix, about)


def _flat(content: Any) -> dict[str, Tensor]:
    """The tensors of nested dicts: {"state_dict": {"fc.weight": …}} → {"state_dict.fc.weight": …}."""

    def walk(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, Mapping):
            for key, inner in value.items():
                yield from walk(inner, f"{name}.{key}" if name else str(key))

    return dict(walk(content, ""))


def _from_mxnet(tensors: dict[str, Tensor], network: Any, path: Path) -> _Content:
    """Our names instead of MXNet's, and what the graph beside the file says about the numbers around the arrays."""
    if not hasattr(network, "mxnet_names"):
        raise ValueError(
            f"backbone.weights={path}: has MXNet's names (arg:…, aux:…), of which {type(network).__name__} knows none; "
            "they are for backbone=mobilefacenet"
        )
    ours = {theirs: own for own, theirs in network.mxnet_names().items()}
    convention = HOUSE
    graph = path.with_name(path.stem + GRAPH)
    if graph.is_file():
        nodes = [json.loads(line) for line in graph.read_text().splitlines() if line.strip()]
        convention = _graph_input(nodes)
        for node in nodes:
            if node["op"] == "BatchNorm":
                _follow_norm(node, tensors, ours, network, graph)
    return _Content({ours.get(name, name): tensor for name, tensor in tensors.items()}, convention, "")


def _graph_input(nodes: list[dict[str, Any]]) -> Input:
    """The convention of a graph that begins with (data − mean)·factor; InsightFace's MXNet models take RGB."""
    mean, factor, reached = 0.0, 1.0, "data"
    for node in nodes:
        if node["op"] not in ("_minus_scalar", "_mul_scalar") or node["inputs"] != [reached]:
            break
        scalar = float(node["attrs"]["scalar"])
        if node["op"] == "_minus_scalar":
            mean += scalar / factor
        else:
            factor *= scalar
        reached = node["name"]
    # Without such nodes, whoever fed the graph has normalised before: as the house does, if as everyone in this family.
    return HOUSE if reached == "data" else Input("rgb", mean, 1 / factor)


def _follow_norm(
    node: dict[str, Any], tensors: dict[str, Tensor], ours: Mapping[str, str], network: Any, graph: Path
) -> None:
    """MXNet ignores the gain of a norm with fix_gamma; its epsilon must be the one that our layer has."""
    attributes = node.get("attrs", {})
    gamma = f"arg:{node['inputs'][1]}"
    if attributes.get("fix_gamma", "True") == "True" and gamma in tensors:
        tensors[gamma] = torch.ones_like(tensors[gamma])
    epsilon = float(attributes.get("eps", 1e-3))
    if gamma in ours:
        layer = network.get_submodule(ours[gamma].rpartition(".")[0])
        if layer.eps != epsilon:
            raise ValueError(f"{graph}: {node['name']} has eps {epsilon}, {type(network).__name__} has {layer.eps}")


def _copy(content: _Content, network: nn.Module, path: Path) -> None:
    """The file's values into the network's, once every name and shape has been found to agree."""
    state = network.state_dict()
    needed = [name for name in state if not name.endswith(COUNTER)]
    prefix = _prefix(content.tensors, set(needed), path) if content.prefix is None else content.prefix
    # With a prefix the file holds other things too, such as class centres; without, all that it holds is the network.
    present = {key.removeprefix(prefix): value for key, value in content.tensors.items() if key.startswith(prefix)}
    missing = [name for name in needed if name not in present]
    unexpected = [name for name in present if name not in state and not name.endswith(COUNTER)]
    wrong = [name for name in needed if name in present and present[name].shape != state[name].shape]
    if missing or unexpected or wrong:
        shapes = [f"{name}: {_shape(present[name])} in the file, {_shape(state[name])} here" for name in wrong]
        groups = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
        parts = [f"{len(names):,} {what} ({_some(names)})" for what, names in groups.items() if names]
        parts += [_widths(present, state)] if wrong else []
        parts += [f"the file is of {content.about}"] if content.about else []
        held = sum(not name.endswith(COUNTER) for name in present)
        raise ValueError(
            f"backbone.weights={path}: is of another network: this {type(network).__name__} has {len(needed):,} "
            f"arrays, the file {held:,}; {'; '.join(filter(None, parts))}. "
            + (explain(content.tensors, state) or "Choose the backbone that it belongs to")
        )
    with torch.no_grad():
        for name, target in state.items():
            if name in present:
                target.copy_(present[name])


def _prefix(names: Iterable[str], needed: set[str], path: Path) -> str:
    """What stands in front of the network's names in the file: of all of them, and in one place only."""
    found: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        for cut in range(len(parts)):
            if ".".join(parts[cut:]) in needed:
                found["".join(f"{part}." for part in parts[:cut])] += 1
    whole = [front for front, count in found.items() if count == len(needed)]
    if len(whole) > 1:
        raise ValueError(
            f"backbone.weights={path}: holds this network {len(whole)} times, as {', '.join(f'{w}*' for w in whole)}: "
            "keep one of them in the file"
        )
    return max(found, key=lambda front: (found[front], -len(front)), default="")


def _widths(present: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """The commonest difference by its own name: the length of the embedding, that of the last norm."""
    last = [name for name in state if not name.endswith(COUNTER)][-1]
    theirs, ours = present.get(last), state[last]
    if theirs is None or theirs.shape == ours.shape or theirs.dim() != 1 or ours.dim() != 1:
        return ""
    return f"the file has embedding {len(theirs)}, the network {len(ours)} (backbone.embedding_size)"


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "one number"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
