"""What a network costs: parameters and multiply-accumulate operations."""

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(network: nn.Module) -> int:
    """Number of parameters, fixed ones included, as published counts have it."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_macs(network: nn.Module, image_size: int) -> int:
    """Multiply-accumulates of convolutions and matrix products for one image; shapes alone are computed.

    Args:
        network: (B,3,H,W) → (B,D).
        image_size: H = W in pixels.
    """
    shapes = copy.deepcopy(network).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shapes(torch.empty(1, 3, image_size, image_size, device="meta"))
    return counter.get_total_flops() // 2
