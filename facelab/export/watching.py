"""What goes on inside a network of torch: what each layer takes and gives."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Watched(NamedTuple):
    """By the names of layers that hold no others, in the order in which they ran."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


def watched(network: nn.Module, images: Tensor) -> Watched:
    """Runs a network and keeps what its innermost layers took and gave; of a layer that runs twice, the last.

    Args:
        network: in eval mode.
        images: what it takes.
    """
    found = Watched({}, {})
    handles: list[Any] = []
    for name, module in network.named_modules():
        if name and not any(True for _ in module.children()):

            def keep(_: nn.Module, given: tuple[Any, ...], result: Any, name: str = name) -> None:
                if given and isinstance(given[0], Tensor) and isinstance(result, Tensor):
                    found.inputs[name], found.outputs[name] = given[0].detach(), result.detach().float()

            handles.append(module.register_forward_hook(keep))
    try:
        with torch.inference_mode():
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    return found
