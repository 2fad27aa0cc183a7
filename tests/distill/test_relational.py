"""RKD against plain loops; what it does not see; and its chunks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seen import STUDENT, TEACHER, B, D, labels, seen, with_gradients

from facelab.distill import relational
from facelab.distill.relational import Relational

WIDE = replace(TEACHER, embedding_size=9)


def made(student=STUDENT, teacher=TEACHER, **options):
    plain = {"distance": 1.0, "angle": 2.0, "unit_student": False, "unit_teacher": True}
    return Relational(student, teacher, **{**plain, **options})


def huber(x):
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def relations(points):
    """Distances over their mean, and the cosines at each point, by plain loops."""
    n = len(points)
    distance = np.array([[np.linalg.norm(points[i] - points[j]) for j in range(n)] for i in range(n)])
    cosine = np.zeros((n, n, n))
    for i in range(n):
        for j in range(n):
            for k in range(n):
                if i not in (j, k):
                    a, b = points[j] - points[i], points[k] - points[i]
                    cosine[i, j, k] = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
    return distance / distance[distance > 0].mean(), cosine


def expected(mine, theirs, distance, angle, unit_student, unit_teacher):
    mine = mine / np.linalg.norm(mine, axis=1, keepdims=True) if unit_student else mine
    theirs = theirs / np.linalg.norm(theirs, axis=1, keepdims=True) if unit_teacher else theirs
    (d_s, c_s), (d_t, c_t) = relations(mine), relations(theirs)
    terms = np.vectorize(huber)
    return distance * terms(d_s - d_t).mean() + angle * terms(c_s - c_t).mean()


@pytest.mark.parametrize(("unit_student", "unit_teacher"), [(False, True), (False, False), (True, True)])
@pytest.mark.parametrize(("distance", "angle"), [(1.0, 2.0), (0.0, 2.0), (3.0, 0.0)])
def test_against_loops(distance, angle, unit_student, unit_teacher):
    options = {"distance": distance, "angle": angle, "unit_student": unit_student, "unit_teacher": unit_teacher}
    mine, theirs = seen(0), seen(1, WIDE)
    wanted = expected(mine.embeddings.numpy(), theirs.embeddings.numpy(), **options)
    assert made(teacher=WIDE, **options)(mine, theirs, labels()).item() == pytest.approx(wanted, rel=1e-10)


def test_far_relations_count_linearly():
    """A distance more than 1 mean away: the other branch of the smooth L1."""
    mine, theirs = seen(0), seen(1)
    mine.embeddings[0] *= 100
    theirs.embeddings[0] = theirs.embeddings[1] + 0.01
    options = {"distance": 1.0, "angle": 0.0, "unit_student": False, "unit_teacher": False}
    (d_s, _), (d_t, _) = relations(mine.embeddings.numpy()), relations(theirs.embeddings.numpy())
    assert abs(d_s - d_t).max() > 1
    wanted = expected(mine.embeddings.numpy(), theirs.embeddings.numpy(), **options)
    assert made(**options)(mine, theirs, labels()).item() == pytest.approx(wanted, rel=1e-10)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.1, 10.0))
def test_a_space_that_is_turned_shifted_and_scaled_is_the_same(seed, factor):
    theirs = seen(1)
    generator = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64))
    shift = torch.randn(D, generator=generator, dtype=torch.float64)
    mine = replace(theirs, embeddings=factor * theirs.embeddings @ turn + shift)
    distiller = made(unit_teacher=False)
    assert distiller(mine, theirs, labels()) < 1e-12
    assert distiller(theirs, theirs, labels()) == 0


@pytest.mark.parametrize("elements", [1, B * B * 2, B * B * 4])
def test_chunks_change_nothing(elements, monkeypatch):
    results = []
    for size in (2**24, elements):
        monkeypatch.setattr(relational, "_ELEMENTS", size)
        mine = with_gradients(seen(0))
        value = made()(mine, seen(1), labels())
        value.backward()
        results.append([value.detach(), mine.embeddings.grad])
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-14)


def test_nothing_as_large_as_all_triples_is_kept(monkeypatch):
    monkeypatch.setattr(relational, "_ELEMENTS", 2 * 32 * 32)
    mine, theirs, kept = with_gradients(seen(0, batch=32)), seen(1, batch=32), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x):
        made()(mine, theirs, labels(32))
    assert kept
    assert max(kept) <= 32 * 32


@pytest.mark.parametrize("batch", [1, 2])
def test_a_batch_without_relations(batch):
    mine = with_gradients(seen(0, batch=batch))
    value = made()(mine, seen(1, batch=batch), labels(batch))
    value.backward()
    assert value < 1e-20
    assert mine.embeddings.grad.isfinite().all()


def test_images_that_coincide_have_finite_gradients():
    mine, theirs = seen(0), seen(1)
    mine.embeddings[1] = mine.embeddings[0]
    theirs.embeddings[2] = theirs.embeddings[0]
    mine = with_gradients(mine)
    value = made()(mine, theirs, labels())
    value.backward()
    assert value > 0
    assert mine.embeddings.grad.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"distance": -1.0}, "distance=-1"), ({"angle": -1.0}, "angle=-1"), ({"distance": 0, "angle": 0}, "nothing to")],
)
def test_what_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        made(**change)
