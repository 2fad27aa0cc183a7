"""The common keys of a loss reach its classifier, and are refused where there is none."""

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from facelab.loss.base import Loss
from facelab.loss.classifier import ClassifierOptions, MarginLoss
from facelab.loss.prototypes import Prototypes
from facelab.training.objective import COMMON, about_loss, build_loss

COSFACE = {"_target_": "facelab.loss.cosface.CosFace", "scale": 30.0, "margin": 0.3}
SOFTMAX = {"_target_": "facelab.loss.softmax.Softmax"}
TRIPLET = {"_target_": "facelab.loss.triplet.Triplet", "margin": 0.2, "mining": "semi_hard", "squared": True}
MINING = {"queue": 2, "refresh": 10, "threshold": 0.1, "search": "exact"}
PLAIN = {"chunk": "auto", "sample_rate": 1.0, "interclass_filter": None}


class Sum(Loss):
    """Two losses in one."""

    def __init__(self, embedding_size, num_classes):
        super().__init__()
        self.parts = nn.ModuleList([MarginLoss(embedding_size, num_classes, 30.0) for _ in range(2)])


def build(loss, **options):
    return build_loss(OmegaConf.create({**loss, "classifier": {**PLAIN, **options}}), embedding_size=4, num_classes=6)


def test_options_arrive():
    assert COMMON == ("classifier",)
    loss = build(COSFACE, chunk=7, sample_rate=0.5, interclass_filter=0.4)
    assert loss.options == ClassifierOptions(7, 0.5, 0.4)
    value = loss(torch.randn(3, 4, requires_grad=True), torch.arange(3), 0).loss
    value.backward()
    assert loss.classifier.weight.grad.is_sparse
    assert build(COSFACE).options == MarginLoss.options == ClassifierOptions(**PLAIN)
    assert build_loss(OmegaConf.create(COSFACE), 4, 6).options == MarginLoss.options


def test_hard_prototypes_arrive():
    loss = build(COSFACE, prototypes=MINING)
    assert loss.options.prototypes == Prototypes(2, 10, 0.1, "exact")
    assert loss.queues.classes.shape == (6, 2)
    assert loss.sharded_parameters() == ["classifier.weight", "queues.classes"]
    for off in ({**MINING, "queue": None}, None):
        for each in (COSFACE, SOFTMAX, TRIPLET):
            assert getattr(build(each, prototypes=off), "queues", None) is None


def test_they_arrive_in_all_parts():
    loss = build({"_target_": f"{__name__}.Sum"}, chunk=3)
    assert [part.options.chunk for part in loss.parts] == [3, 3]


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (COSFACE, {"sample_rate": 0}, r"loss\.classifier: sample_rate=0 "),
        (COSFACE, {"sample_rate": "much"}, r"loss\.classifier\.sample_rate is 'much'"),
        (COSFACE, {"sample_rate": True}, r"loss\.classifier\.sample_rate is True"),
        (COSFACE, {"chunk": 0}, r"loss\.classifier: chunk=0"),
        (COSFACE, {"chunk": "none"}, r"loss\.classifier: chunk=none"),
        (COSFACE, {"interclass_filter": "0.4"}, r"loss\.classifier\.interclass_filter is '0\.4'"),
        (SOFTMAX, {"interclass_filter": 0.4}, r"loss\.classifier: interclass_filter=0\.4 .* Softmax"),
        (COSFACE, {"prototypes": {**MINING, "queue": 0}}, r"loss\.classifier: prototypes\.queue=0"),
        (COSFACE, {"prototypes": {**MINING, "queue": "all"}}, r"loss\.classifier\.prototypes\.queue is 'all'"),
        (COSFACE, {"prototypes": {**MINING, "search": None}}, r"loss\.classifier\.prototypes\.search is None"),
        (COSFACE, {"prototypes": MINING, "sample_rate": 0.5}, r"loss\.classifier: sample_rate=0\.5 and prototypes"),
        (SOFTMAX, {"prototypes": MINING}, r"loss\.classifier: prototypes .* Softmax"),
        (TRIPLET, {"prototypes": MINING}, r"loss\.classifier\.prototypes\.queue is 2, and Triplet has no classifier"),
        (TRIPLET, {"sample_rate": 0.5}, r"loss\.classifier\.sample_rate is 0\.5, and Triplet has no classifier"),
    ],
)
def test_what_cannot_be_is_refused(loss, options, message):
    with pytest.raises(ValueError, match=message):
        build(loss, **options)


def test_losses_within_a_loss_are_told_the_sizes_too():
    inner = {"_target_": "facelab.loss.sum.Sum", "parts": {"softmax": SOFTMAX}, "weights": {"softmax": 2.0}}
    node = {**inner, "parts": {"cosface": COSFACE, "inner": inner}, "weights": {"cosface": 1.0, "inner": 0.5}}
    loss = build(node, chunk=3)
    assert loss.sharded_parameters() == [
        "parts.cosface.classifier.weight",
        "parts.inner.parts.softmax.classifier.weight",
    ]
    for part in (loss.parts["cosface"], loss.parts["inner"].parts["softmax"]):
        assert part.classifier.weight.shape == (6, 4)
        assert part.options.chunk == 3
    assert about_loss(node) == "1·cosface + 0.5·inner"
    assert about_loss(COSFACE) == "CosFace, scale 30.0, margin 0.3"
    assert "_partial_" not in COSFACE


def test_losses_of_pairs_take_the_plain_options():
    assert type(build(TRIPLET)).__name__ == "Triplet"
