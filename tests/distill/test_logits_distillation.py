"""Logits KD against plain softmaxes; its chunks, and what it keeps."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from seen import STUDENT, TEACHER, B, C, labels, seen, tensors, with_gradients

from facelab.distill import logits
from facelab.distill.logits import Logits

WIDE = replace(TEACHER, embedding_size=9)


def made(student=STUDENT, teacher=WIDE, **options):
    return Logits(student, teacher, **{"weight": 2.0, "temperature": 4.0, "scale": None, **options})


def probabilities(embedding, centres, scale):
    """Of every class, by plain numbers."""
    powers = []
    for centre in centres:
        length = math.hypot(*embedding) * math.hypot(*centre)
        powers.append(math.exp(scale * sum(x * y for x, y in zip(embedding, centre, strict=True)) / length))
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("scale", "scales"), [(None, (16.0, 24.0)), (30.0, (30.0, 30.0))])
def test_against_plain_numbers(scale, scales, temperature):
    mine, theirs = seen(0), seen(1, WIDE)
    total = 0.0
    for image in range(B):
        p_s, p_t = (
            probabilities(of.embeddings[image].tolist(), of.centres.tolist(), s / temperature)
            for of, s in zip((mine, theirs), scales, strict=True)
        )
        total += sum(t * math.log(t / s) for s, t in zip(p_s, p_t, strict=True))
    value = made(scale=scale, temperature=temperature)(mine, theirs, labels())
    assert value.item() == pytest.approx(2 * temperature**2 * total / B, rel=1e-10)


def plain(mine, theirs):
    """The same by torch, all classes at once."""
    student = 16 / 4 * F.normalize(mine.embeddings) @ F.normalize(mine.centres).T
    teacher = 24 / 4 * F.normalize(theirs.embeddings) @ F.normalize(theirs.centres).T
    return 2 * 16 * F.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="batchmean")


@pytest.mark.parametrize("classes", [1, 3, C])
def test_chunks_change_nothing(classes, monkeypatch):
    monkeypatch.setattr(logits, "_ELEMENTS", classes * B)
    found = []
    for make in (plain, lambda mine, theirs: made()(mine, theirs, labels())):
        mine = with_gradients(seen(0))
        value = make(mine, seen(1, WIDE))
        value.backward()
        found.append([value.detach(), mine.embeddings.grad, mine.centres.grad])
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-13)


def test_frozen_centres_and_a_sure_teacher():
    mine, theirs = seen(0), seen(1, WIDE)
    mine.embeddings.requires_grad_()
    value = made(temperature=0.1, scale=64.0)(mine, theirs, labels())  # logits up to 640
    value.backward()
    assert value.isfinite()
    assert mine.embeddings.grad.isfinite().all()


def test_no_matrix_of_images_and_classes_is_kept(monkeypatch):
    classes = 500
    monkeypatch.setattr(logits, "_ELEMENTS", 20 * 32)
    mine, theirs = (replace(seen(seed, batch=32), centres=torch.randn(classes, 5).double()) for seed in (0, 1))
    mine, kept = with_gradients(mine), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x):
        value = made(teacher=TEACHER)(mine, theirs, labels(32))
    value.backward()
    assert kept
    assert max(kept) <= 32 * 25  # a number for each image and chunk
    assert all(tensor.grad is not None for tensor in (tensors(mine)[0], mine.centres))


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_network_without_classes_is_refused(who):
    networks = {"student": STUDENT, "teacher": WIDE}
    with pytest.raises(ValueError, match=f"loss of the {who} .* has no fixed scale: set scale=64"):
        made(**{who: replace(networks[who], scale=None)})
    with pytest.raises(ValueError, match="no fixed scale"):
        made(**{who: replace(networks[who], scale="norm")})
    made(**{who: replace(networks[who], scale=None)}, scale=64.0)
    has = {"student": seen(0), "teacher": seen(1, WIDE)}
    has[who] = replace(has[who], centres=None)
    with pytest.raises(ValueError, match=f"the {who} has no class centres"):
        made()(has["student"], has["teacher"], labels())


def test_other_classes_are_refused():
    theirs = seen(1, WIDE)
    with pytest.raises(ValueError, match="student has 7 from 0 on, the teacher 6 from 0 on"):
        made()(seen(0), replace(theirs, centres=theirs.centres[:6]), labels())
    with pytest.raises(ValueError, match="teacher 7 from 2 on"):
        made()(seen(0), replace(theirs, first=2), labels())


@pytest.mark.parametrize("change", [{"weight": -1.0}, {"temperature": 0.0}, {"scale": 0.0}])
def test_options_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))}="):
        made(**change)
