"""Batch norms become part of the convolution or linear layer in front of them: one product instead of two steps."""

from typing import Any

import torch
from torch import Tensor, nn

from facelab.export.program import to_program

_UNCHANGED = (torch.ops.aten.to.dtype, torch.ops.aten.dropout.default, torch.ops.aten.alias.default)


class Folded(nn.Module):
    """Stands where a batch norm was: hands its input on. Networks ask a norm for the type of its weight."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.register_buffer("weight", weight.new_empty(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Any tensor → the same."""
        return x


@torch.no_grad()
def fold(network: nn.Module, example: Tensor) -> dict[str, str]:
    """Folds, in place, every batch norm whose input is the result of one convolution or linear layer and of no other.

    A norm in front of a convolution stays: the padding around its result is not padding around its input. So do norms
    of a kind of their own, such as timm's with an activation inside, and layers that are used twice.

    Args:
        network: in eval mode.
        example: what it takes.

    Returns:
        Name of the layer → name of the norm that is in it now.

    Raises:
        ValueError: the network cannot be written as a graph.
    """
    program = to_program(network, example, batch=len(example))
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    modules = dict(network.named_modules())
    found: dict[str, str] = {}
    for node in program.graph.nodes:
        if node.target is not torch.ops.aten.batch_norm.default:
            continue
        source = _behind(node.args[0])
        if source is None or node.args[3] is None or not _once(node.args[3]) or not _once(source.args[1]):
            continue
        layer, norm = (names.get(argument.name, "").rpartition(".")[0] for argument in (source.args[1], node.args[3]))
        kinds = type(modules.get(layer)), type(modules.get(norm))
        if kinds in ((nn.Conv2d, nn.BatchNorm2d), (nn.Linear, nn.BatchNorm1d)):
            _merge(modules[layer], modules[norm])
            network.set_submodule(norm, Folded(modules[layer].weight))
            found[layer] = norm
    return found


def _behind(node: Any) -> Any:
    """The convolution or linear layer whose result a norm takes, with nothing that changes it in between; or None."""
    while _once(node):
        if node.target in (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default, torch.ops.aten.conv2d.padding):
            return node
        if node.target not in _UNCHANGED or node.meta["val"].dtype != node.args[0].meta["val"].dtype:
            return None
        node = node.args[0]
    return None


def _once(node: Any) -> bool:
    """Whether one step alone uses it; what only asserts its type does not count."""
    asserts = torch.ops.aten._assert_tensor_metadata.default
    return sum(user.target is not asserts for user in node.users) == 1


def _merge(layer: Any, norm: Any) -> None:
    """γ·(Wx + b − μ)/√(σ² + ε) + β as one W′x + b′, in float64."""
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    bias = -norm.running_mean.double() * scale
    if layer.bias is not None:
        bias = bias + layer.bias.double() * scale
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    weight = layer.weight.double() * scale.view(-1, *[1] * (layer.weight.dim() - 1))
    kind = layer.weight.dtype
    layer.weight = nn.Parameter(weight.to(kind).contiguous(), requires_grad=False)
    layer.bias = nn.Parameter(bias.to(kind), requires_grad=False)
