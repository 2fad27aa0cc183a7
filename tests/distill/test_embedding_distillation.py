"""Four distances between embeddings against plain numbers."""

import math
from dataclasses import replace

import pytest
from seen import STUDENT, TEACHER, B, labels, seen

from facelab.distill.embedding import Embedding
from facelab.distill.inherited_classifier import InheritedClassifier
from facelab.distill.margin import Margin


def expected(form, mine, theirs):
    total = 0.0
    for a, b in zip(mine.tolist(), theirs.tolist(), strict=True):
        long, other = math.hypot(*a), math.hypot(*b)
        cosine = sum(x * y for x, y in zip(a, b, strict=True)) / (long * other)
        total += {
            "l2": sum((x - y) ** 2 for x, y in zip(a, b, strict=True)),
            "cosine": 1 - cosine,
            "angular": (1 - cosine) ** 2,
            "unit_l2": sum((x / long - y / other) ** 2 for x, y in zip(a, b, strict=True)),
        }[form]
    return total / B


@pytest.mark.parametrize("form", ["l2", "cosine", "angular", "unit_l2"])
def test_against_plain_numbers(form):
    mine, theirs = seen(0), seen(1)
    value = Embedding(STUDENT, TEACHER, weight=0.3, form=form)(mine, theirs, labels())
    assert value.item() == pytest.approx(0.3 * expected(form, mine.embeddings, theirs.embeddings), rel=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda student, teacher: Embedding(student, teacher, weight=1.0, form="l2"),
        lambda student, teacher: Margin(student, teacher, low=0.2, high=0.5),
        InheritedClassifier,
    ],
)
def test_embeddings_of_two_lengths_are_refused(make):
    message = "student Small's have 5 numbers, the teacher Large's 9: set backbone.embedding_size=9"
    with pytest.raises(ValueError, match=message):
        make(STUDENT, replace(TEACHER, embedding_size=9))


@pytest.mark.parametrize(
    ("change", "message"), [({"form": "l1"}, "form=l1 .* l2, cosine"), ({"weight": -1}, "weight=-1")]
)
def test_what_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Embedding(STUDENT, TEACHER, **{"weight": 1.0, "form": "l2", **change})


def test_the_inherited_classifier_asks_for_the_centres_and_adds_nothing():
    made = InheritedClassifier(STUDENT, TEACHER)
    assert made.inherits_centres
    assert not any((made.gives_margins, made.wants_centres, made.wants_features, made.wants_attention))
    assert made.margins(seen(1), labels()) is None
    assert made(seen(0), seen(1), labels()) == 0
