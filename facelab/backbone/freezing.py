"""Stages that stay as they are: no gradient, no dropout, and batch norms that neither learn nor look at the batch."""

from torch import nn

from facelab.backbone.stages import stages


class _Resting:
    """Stands in for a module's `train`: in evaluation mode it stays, whatever is asked of the network around it."""

    def __init__(self, module: nn.Module):
        self.module = module  # a copy of the network copies this along with it

    def __call__(self, mode: bool = True) -> nn.Module:
        return type(self.module).train(self.module, False)


def freeze(network: nn.Module, count: int) -> None:
    """Keeps the first stages of a network as they are, in place, through all training that follows.

    Args:
        network: with a method `stages()`, unless `count` is 0.
        count: of stages, from the input on; the stem is the first.

    Raises:
        ValueError: the network has no such number of stages, or does not say them.
    """
    if count == 0:
        return
    found = stages(network)
    if not 0 < count <= len(found):
        names = ", ".join(stage.name for stage in found)
        raise ValueError(
            f"backbone.freeze is {count}: give 0 (none) to {len(found)} of this {type(network).__name__}'s stages "
            f"({names})"
        )
    for stage in found[:count]:
        for parameter in stage.parameters():
            parameter.requires_grad_(False)
        for module in stage.modules:
            vars(module)["train"] = _Resting(module)
            module.train()
