"""What the tests of every loss share: the authors' numbers, embeddings at given angles, and the edges of the sphere."""

import copy
from pathlib import Path

import numpy as np
import torch
from torch.func import functional_call

from facelab.loss.classifier import MarginLoss
from facelab.loss.collective import enter_shards

D, C, B = 16, 7, 12
_GOLDEN = Path(__file__).parents[1] / "golden" / "losses.npz"
THETA = np.linspace(0, np.pi, 722)  # no kink of any margin falls on it, but for those that the ends have


class Golden:
    """One entry of the authors' numbers."""

    def __init__(self, name):
        with np.load(_GOLDEN) as file:
            self.embeddings = torch.from_numpy(file["input/emb"]).double()
            self.weight = torch.from_numpy(file["input/weight"]).double()
            self.labels = torch.from_numpy(file["input/labels"])
            self.values = {key.removeprefix(f"{name}/"): file[key] for key in file.files if key.startswith(f"{name}/")}
        assert self.values, f"no golden numbers of the name {name}"

    def compare(self, loss, step=0, unit_centres=False, constant=0.0, but=()):
        """Logits, loss and both gradients, `but` for some; those of unit centres without their radial part.

        `constant` is what the public code adds to the loss.
        """
        assert {"logits", "loss", "grad_emb", "grad_weight"} - set(but) <= self.values.keys()
        weight = torch.nn.functional.normalize(self.weight) if unit_centres else self.weight
        loss = with_centres(loss, weight)
        embeddings = self.embeddings.clone().requires_grad_()
        if "logits" not in but:
            logits = copy.deepcopy(loss).logits(embeddings, self.labels, step)
            np.testing.assert_allclose(logits.detach(), self.values["logits"], rtol=0, atol=1e-11)
        value = loss(embeddings, self.labels, step).loss
        value.backward()
        np.testing.assert_allclose(value.item() + constant, self.values["loss"], rtol=1e-12)
        if "grad_emb" not in but:
            close(embeddings.grad, self.values["grad_emb"])
        if "grad_weight" not in but:
            expected = self.values["grad_weight"].astype(np.float64)
            if unit_centres:
                unit = weight.numpy()
                expected = expected - unit * (unit * expected).sum(axis=1, keepdims=True)
            close(loss.classifier.weight.grad, expected, slack=2 if unit_centres else 1)
        return loss


class EveryHook(MarginLoss):
    """All that a later margin may do: gradients through norms and own parameters, in and across the shards."""

    def __init__(self, embedding_size, num_classes, scale):
        super().__init__(embedding_size, num_classes, scale)
        self.margins = torch.nn.Parameter(torch.linspace(0.1, 0.4, num_classes))
        self.bias = torch.nn.Parameter(torch.tensor(0.2))
        self.factor = 1.0
        self.register_buffer("mean_norm", torch.tensor(2.0))

    def row_scale(self, context):
        return 2 * context.norms

    def target(self, cosine, context):
        self.mean_norm = 0.9 * self.mean_norm + 0.1 * context.norms.detach().mean()
        return cosine - self.margins[context.labels] * context.norms / self.mean_norm

    def non_target(self, cosines, target, context):
        lengths = enter_shards(context.norms)[:, None] / self.mean_norm
        return cosines * (self.factor + target[:, None].sigmoid() / lengths) + enter_shards(self.bias)

    def regulariser(self, context):
        return 0.1 * (1 / context.norms).mean() - self.margins.mean()


def close(gradient, stored, slack=1.0):
    """A float64 gradient against one that was stored as float32."""
    np.testing.assert_allclose(gradient, stored, rtol=slack * 1e-6, atol=slack * 1e-7 * abs(stored).max())


def with_centres(loss, weight):
    """The loss in the precision of the given (C,D) centres, with these."""
    loss = loss.to(weight.dtype)
    loss.classifier.weight.data = weight.clone()
    return loss


def sample(dtype=torch.float64, seed=0):
    """(B,D) embeddings, (C,D) centres, (B,) labels."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(B, D, generator=generator, dtype=torch.float64) * 3
    weight = torch.randn(C, D, generator=generator, dtype=torch.float64)
    labels = torch.randint(C, (B,), generator=generator)
    return embeddings.to(dtype), weight.to(dtype), labels


def target_logits(loss, theta, norms=1.0, step=0):
    """(n,) scaled target logits of rows whose angles to their centre, and lengths, are given; float64."""
    theta = torch.as_tensor(theta, dtype=torch.float64)
    embeddings = torch.zeros(len(theta), D, dtype=torch.float64)
    embeddings[:, 0], embeddings[:, 1] = theta.cos(), theta.sin()
    embeddings *= torch.as_tensor(norms, dtype=torch.float64).reshape(-1, 1)
    weight = torch.zeros(loss.classifier.num_classes, D, dtype=torch.float64)
    weight[0, 0], weight[1:, 2] = 1, 1
    labels = torch.zeros(len(theta), dtype=torch.int64)
    return with_centres(loss, weight).logits(embeddings, labels, step)[:, 0].detach().numpy()


def check_gradient(loss, step=0):
    """The gradient with respect to embeddings, centres and the loss's own parameters is the derivative."""
    embeddings, weight, labels = sample()
    embeddings, weight, labels = embeddings[:6, :8], weight[:5, :8], labels[:6] % 5
    cosines = torch.nn.functional.normalize(embeddings) @ torch.nn.functional.normalize(weight).T
    assert cosines.abs().max() < 0.8  # away from the clamps
    loss = loss.double()
    own = {name: value.detach().clone() for name, value in loss.named_parameters() if name != "classifier.weight"}

    def value(embeddings, weight, *parameters):
        given = {"classifier.weight": weight, **dict(zip(own, parameters, strict=True))}
        return functional_call(loss, given, (embeddings, labels, step)).loss

    inputs = [part.requires_grad_() for part in (embeddings, weight, *own.values())]
    # A scale of 64 makes the second derivative large, so finite differences need a small step.
    assert torch.autograd.gradcheck(value, inputs, eps=1e-7, atol=1e-5, rtol=1e-4)


def check_edges(build, dtype, directed=True):
    """All is finite at cosines of exactly ±1, those that round to 1.0000001, and embeddings and centres of length 0."""
    _, weight, labels = sample()
    embeddings = weight[labels] * torch.linspace(-4, 4, B, dtype=torch.float64)[:, None]
    embeddings[0] = 0
    embeddings[1], weight[0] = torch.eye(D)[0], torch.eye(D)[0]
    embeddings[2], labels[:3] = -embeddings[1], 0
    weight[1] = 0
    embeddings = embeddings.to(dtype).requires_grad_()
    loss = with_centres(build(), weight.to(dtype))
    for step in range(3):
        embeddings.grad = None
        value, logs, _ = loss(embeddings, labels, step)
        value.backward()
        assert value.dtype == torch.float32
        assert value.isfinite()
        assert all(entry.isfinite() for entry in logs.values())
        assert embeddings.grad.dtype == dtype
        assert embeddings.grad.isfinite().all()
        assert loss.classifier.weight.grad.isfinite().all()
        assert 0 <= logs["accuracy"] <= 1
        assert not directed or not embeddings.grad[0].any()  # no direction, no gradient
        assert all(parameter.grad.isfinite().all() for parameter in loss.parameters())
