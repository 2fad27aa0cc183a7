"""The half-precision PReLU is torch's PReLU, forwards and backwards."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from facelab.backbone.prelu import HalfPReLU, PReLU


def test_gradients_are_the_derivatives():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=generator)
    x = (x + 0.1 * x.sign()).requires_grad_()  # away from the kink
    slope = torch.tensor([0.25, 0.0, -0.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(HalfPReLU.apply, (x, slope))


def test_at_zero_it_is_torchs():
    x = torch.zeros(1, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    slope = torch.tensor([0.25, 0.5], dtype=torch.float64)
    ours = torch.autograd.grad(HalfPReLU.apply(x, slope).sum(), x)[0]
    theirs = torch.autograd.grad(F.prelu(x, slope).sum(), x)[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_nearer_to_float64_than_its_rounding(layout, dtype):
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(16, 8, 14, 14, generator=generator).to(dtype)
    upstream = torch.randn(16, 8, 14, 14, generator=generator).to(dtype)
    layer = PReLU(8)
    x = values.clone(memory_format=layout).requires_grad_()
    layer(x).backward(upstream.to(memory_format=layout))
    exact, wide = nn.PReLU(8).double(), values.double().requires_grad_()
    exact(wide).backward(upstream.double())
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(x.grad.double(), wide.grad, rtol=rounding, atol=rounding)
    size = (upstream.double() * values.double()).abs().sum((0, 2, 3))
    assert ((layer.weight.grad.double() - exact.weight.grad).abs() <= rounding * size).all()
    assert layer.weight.grad.dtype == torch.float32


def test_it_is_torchs_own_elsewhere():
    layer, own = PReLU(4), nn.PReLU(4)
    assert list(layer.state_dict()) == list(own.state_dict())
    x = torch.randn(2, 4, 3, 3)
    assert layer(x).grad_fn.name() == own(x).grad_fn.name()
