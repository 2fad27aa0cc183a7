"""A sum of distillers is the sum of what they are alone, and asks for what they ask for."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from seen import STUDENT, TEACHER, gradients, labels, seen, with_gradients

from facelab.distill.attention_transfer import AttentionTransfer
from facelab.distill.base import Distiller, Ranks
from facelab.distill.embedding import Embedding
from facelab.distill.inherited_classifier import InheritedClassifier
from facelab.distill.logits import Logits
from facelab.distill.margin import Margin
from facelab.distill.sum import Sum

LOGITS = partial(Logits, weight=1.0, temperature=4.0, scale=None)
COSINE = partial(Embedding, weight=1.0, form="cosine")
TRANSFER = partial(AttentionTransfer, weight=10.0)
MARGIN = partial(Margin, low=0.2, high=0.5)
PARTS = {"logits": LOGITS, "cosine": COSINE, "transfer": TRANSFER}
WEIGHTS = {"logits": 0.5, "cosine": 2.0, "transfer": 0.0}


def made(parts=PARTS, weights=WEIGHTS, teacher=TEACHER):
    return Sum(STUDENT, teacher, parts, weights)


def test_value_and_gradients_are_the_weighted_sum():
    mine = with_gradients(seen(0))
    value = made()(mine, seen(1), labels())
    value.backward()
    expected, total = [torch.zeros_like(gradient) for gradient in gradients(mine)], 0.0
    for name, make in PARTS.items():
        alone = with_gradients(seen(0))
        part = make(student=STUDENT, teacher=TEACHER)(alone, seen(1), labels())
        part.backward()
        total += WEIGHTS[name] * part.item()
        expected = [
            so_far + WEIGHTS[name] * gradient for so_far, gradient in zip(expected, gradients(alone), strict=True)
        ]
    assert value.item() == pytest.approx(total, rel=1e-12)
    torch.testing.assert_close(gradients(mine), expected, rtol=1e-10, atol=1e-14)


WANTS = ("wants_features", "wants_attention", "wants_centres", "inherits_centres", "gives_margins")


def test_it_asks_for_what_any_part_asks_for():
    def asks(**parts):
        total = made(parts, dict.fromkeys(parts, 1.0))
        return {want for want in WANTS if getattr(total, want)}

    assert asks(cosine=COSINE) == set()
    assert asks(cosine=COSINE, logits=LOGITS, transfer=TRANSFER) == {"wants_centres", "wants_features"}
    assert asks(margin=MARGIN, cosine=COSINE) == {"wants_centres", "inherits_centres", "gives_margins"}
    assert asks(inherited=InheritedClassifier) == {"inherits_centres"}
    assert not any(getattr(Sum, want) for want in WANTS)  # of the instance alone


def test_margins_come_from_the_part_that_gives_them():
    total = made({"cosine": COSINE, "margin": MARGIN}, {"cosine": 1.0, "margin": 0.0})
    alone = MARGIN(student=STUDENT, teacher=TEACHER)
    assert torch.equal(total.margins(seen(1), labels()), alone.margins(seen(1), labels()))
    assert made().margins(seen(1), labels()) is None


def test_ranks_reach_the_parts():
    total, ranks = made(), Ranks()
    for module in total.modules():
        if isinstance(module, Distiller):
            module.ranks = ranks
    assert all(part.ranks is ranks for part in total.parts.values())


@pytest.mark.parametrize(
    ("parts", "weights", "message"),
    [
        ({}, {}, "parts are none"),
        (PARTS, {"cosine": 1.0}, "parts are logits, cosine, transfer, weights cosine: give every part a weight"),
        ({"cosine": COSINE}, {"cosine": -1.0}, r"weights\.cosine=-1"),
        ({"keys": COSINE}, {"keys": 1.0}, r"parts\.keys: a part's name"),
        ({"a b": COSINE}, {"a b": 1.0}, r"parts\.a b: a part's name"),
        ({"one": MARGIN, "two": MARGIN}, {"one": 1.0, "two": 1.0}, "parts one and two both give the margin"),
    ],
)
def test_what_cannot_be_is_refused(parts, weights, message):
    with pytest.raises(ValueError, match=message):
        made(parts, weights)


def test_a_parts_refusal_names_the_part():
    with pytest.raises(ValueError, match=r"parts\.cosine: embedding compares embeddings, and the student Small's"):
        made({"cosine": COSINE}, {"cosine": 1.0}, replace(TEACHER, embedding_size=9))
