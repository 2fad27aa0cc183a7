"""The margin of an image by the teacher's cosine, against plain numbers."""

import math
from dataclasses import replace

import pytest
import torch
from seen import STUDENT, TEACHER, B, labels, seen

from facelab.distill.margin import Margin

OWN = torch.tensor([0.9, 0.8, 0.3, 0.0, -0.4, 0.1], dtype=torch.float64)  # cosines of the images to their centres


def made(**options):
    return Margin(STUDENT, TEACHER, **{"low": 0.2, "high": 0.5, **options})


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def test_against_plain_numbers():
    theirs = seen(3)
    own = [cosine(theirs.embeddings[i].tolist(), theirs.centres[labels()[i]].tolist()) for i in range(B)]
    assert max(own) > 0 > min(own)
    expected = [0.2 + 0.3 * max(0.0, one) / max(own) for one in own]
    assert made().margins(theirs, labels()).tolist() == pytest.approx(expected, rel=1e-12)


def test_the_surer_the_teacher_the_larger_the_margin():
    centres = torch.eye(7, 5, dtype=torch.float64)
    embeddings = torch.zeros(B, 5, dtype=torch.float64)
    embeddings[:, 0], embeddings[:, 1] = OWN, (1 - OWN**2).sqrt()
    theirs = replace(seen(1), embeddings=3 * embeddings, centres=2 * centres)
    margins = made().margins(theirs, torch.zeros(B, dtype=torch.int64))
    expected = torch.tensor([0.5, 0.2 + 0.3 * 8 / 9, 0.3, 0.2, 0.2, 0.2 + 0.3 / 9], dtype=torch.float64)
    torch.testing.assert_close(margins, expected)
    lost = replace(theirs, embeddings=-theirs.embeddings * (OWN > 0)[:, None])
    torch.testing.assert_close(made().margins(lost, torch.zeros(B, dtype=torch.int64)), torch.full((B,), 0.2).double())


def test_it_asks_for_the_teachers_centres_and_adds_no_term():
    distiller = made()
    assert distiller.inherits_centres
    assert distiller.gives_margins
    assert distiller.wants_centres
    assert distiller(seen(0), seen(1), labels()) == 0
    leaf = seen(1)
    leaf.embeddings.requires_grad_()
    assert not distiller.margins(leaf, labels()).requires_grad


def test_half_precision_is_computed_in_float32():
    theirs = seen(3, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        margins = made().margins(theirs, labels())
    assert margins.dtype == torch.float32
    torch.testing.assert_close(margins, made().margins(seen(3), labels()).float(), rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("change", "message"), [({"low": -0.1}, "low=-0.1"), ({"high": 0.1}, "high=0.1 .* between 0.2")]
)
def test_options_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        made(**change)


def test_a_teacher_without_centres_is_refused():
    with pytest.raises(ValueError, match="the teacher has none"):
        made().margins(replace(seen(1), centres=None), labels())
