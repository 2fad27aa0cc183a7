"""The stages of a network: what is frozen, what has a rate of its own, what is computed twice, what is distilled.

Every network says its stages itself, by a method ``stages()``: the stem, the inner stages, and the output layers
("neck"), in the order in which an image passes through them.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from facelab.backbone.attention import CBAM, attention_maps

Shape = tuple[int, int, int]


def _as_it_is(output: Tensor) -> Tensor:
    return output


@dataclass(frozen=True)
class Stage:
    """A part of a network.

    Attributes:
        name: for messages.
        modules: its units in their order; the output of the last one is the stage's.
        own: parameters that are in none of these modules, such as a transformer's position embedding.
        to_map: makes the stage's output a feature map (B,C,h,w), where it is none.
    """

    name: str
    modules: tuple[nn.Module, ...]
    own: tuple[nn.Parameter, ...] = ()
    to_map: Callable[[Tensor], Tensor] = _as_it_is

    def parameters(self) -> Iterator[nn.Parameter]:
        """All of its parameters."""
        for module in self.modules:
            yield from module.parameters()
        yield from self.own


def stages(network: nn.Module) -> list[Stage]:
    """The stages of a network: stem first, output layers last; each parameter is in one of them.

    Raises:
        ValueError: the network does not say its stages.
    """
    found = _said(network)
    # A parameter that two modules share is one, and belongs to one stage.
    counts = Counter(key for stage in found for key in {id(parameter) for parameter in stage.parameters()})
    assert counts == Counter({id(parameter): 1 for parameter in network.parameters()})
    return found


def _said(network: nn.Module) -> list[Stage]:
    """What a network says, as it says it."""
    if not _says(network):
        raise ValueError(
            f"{type(network).__name__} does not say what its stages are: give it a method stages() -> list[Stage] "
            "(facelab/backbone/stages.py, docs/extend.md)"
        )
    return network.stages()  # type: ignore[operator]


@contextmanager
def feature_maps(network: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what leaves the inner stages of what a network computes inside the `with`; outside it costs nothing.

        with feature_maps(network) as maps:
            embeddings = network(images)
        for features in maps: …

    A network that was compiled is run as it is written while its maps are asked for.

    Args:
        network: with a method `stages()`.

    Yields:
        A list that grows by one (B,C,h,w) for each inner stage (neither stem nor output layers) and forward pass, in
        their order, with gradients where the network has them; half precision where the network computes in it.

    Raises:
        ValueError: the network does not say its stages.
    """
    inner = _said(network)[1:-1]  # at every step, so without a count of the parameters
    maps: list[Tensor] = []

    def collect(stage: Stage) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, inputs, output: maps.append(stage.to_map(output))

    with ExitStack() as stack:
        for stage in inner:
            hook = stage.modules[-1].register_forward_hook(collect(stage))
            stack.callback(hook.remove)
        if network._compiled_call_impl is not None:  # compiled code does not look for hooks again
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield maps


def shapes(network: nn.Module, size: int) -> tuple[list[Shape], list[Shape]]:
    """What `feature_maps` and `attention_maps` give for an image, found out without computing anything.

    Args:
        network: (B,3,H,W) → (B,D).
        size: H = W in pixels.

    Returns:
        (C,h,w) of each inner stage's map, and of each attention unit's result: its channel map has C numbers, its
        spatial map h × w. The first is empty for a network that does not say its stages, the second for one without
        attention.
    """
    network = copy.deepcopy(network).to("meta").eval()
    features: list[Tensor] = []
    attention: list[tuple[Tensor, Tensor]] = []
    with ExitStack() as stack:
        if _says(network):
            features = stack.enter_context(feature_maps(network))
        if any(isinstance(module, CBAM) for module in network.modules()):
            attention = stack.enter_context(attention_maps(network))
        with torch.no_grad():
            network(torch.empty(2, 3, size, size, device="meta", dtype=next(network.parameters()).dtype))
    return (
        [_shape(features.shape[1:]) for features in features],
        [_shape((channel.shape[1], *spatial.shape[2:])) for channel, spatial in attention],
    )


def _says(network: nn.Module) -> bool:
    """Whether it has the method; a module of that name, as many a network has, is none."""
    return callable(getattr(type(network), "stages", None))


def _shape(numbers: tuple[int, ...]) -> Shape:
    channels, height, width = numbers
    return channels, height, width
