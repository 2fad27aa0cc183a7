"""A-SKD against its authors' numbers, and against plain loops where units are chosen and sizes differ."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from seen import STUDENT, TEACHER, B, labels, seen

from facelab.distill.attention_similarity import AttentionSimilarity
from facelab.distill.base import Seen, Shapes
from facelab.distill.maps import resized

GOLDEN = Path(__file__).parents[1] / "golden" / "distillation.npz"


def made(student=STUDENT, teacher=TEACHER, **options):
    plain = {"weight": 5.0, "channel": True, "spatial": True, "blocks": None, "teacher_blocks": None}
    return AttentionSimilarity(student, teacher, **{**plain, **options})


def test_golden():
    with np.load(GOLDEN) as file:
        golden = {key.removeprefix("askd_distill/"): torch.from_numpy(file[key]) for key in file.files}
    maps = [golden[f"s{i}"].requires_grad_() for i in range(4)]
    shapes = Shapes("IResNet", 2, attention=((64, 28, 28), (128, 14, 14)))
    nothing = torch.zeros(4, 2, dtype=torch.float64)
    mine = Seen(nothing, attention=((maps[0], maps[1]), (maps[2], maps[3])))
    theirs = Seen(nothing, attention=((golden["t0"], golden["t1"]), (golden["t2"], golden["t3"])))
    loss = made(shapes, shapes)(mine, theirs, labels(4))
    loss.backward()
    assert loss.item() == pytest.approx(golden["loss"].item(), rel=1e-12)
    for i, part in enumerate(maps):
        expected = golden[f"grad_s{i}"].numpy()
        np.testing.assert_allclose(part.grad, expected, rtol=1e-9, atol=1e-12 * np.abs(expected).max())


def cosine(a, b):
    """Of two maps, by plain numbers."""
    a, b = a.flatten().tolist(), b.flatten().tolist()
    length = (sum(x * x for x in a) * sum(x * x for x in b)) ** 0.5
    return sum(x * y for x, y in zip(a, b, strict=True)) / length


@pytest.mark.parametrize(("channel", "spatial"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize(
    ("blocks", "teacher_blocks", "pairs"),
    [(None, None, [(0, 0), (1, 1)]), (1, None, [(1, 1)]), ([0], [2], [(0, 2)]), (None, [0, 3], [(0, 0), (1, 3)])],
)
def test_the_sum_over_units_and_maps(blocks, teacher_blocks, pairs, channel, spatial):
    deep = replace(TEACHER, attention=(*TEACHER.attention[:2], *TEACHER.attention)) if pairs[-1][1] > 1 else TEACHER
    mine, theirs = seen(0), seen(1, deep)
    expected = 0.0
    for s, t in pairs:
        for kind in [0] * channel + [1] * spatial:
            terms = [1 - cosine(mine.attention[s][kind][i], theirs.attention[t][kind][i]) for i in range(B)]
            expected += 5 * sum(terms) / B
    options = {"blocks": blocks, "teacher_blocks": teacher_blocks, "channel": channel, "spatial": spatial}
    assert made(STUDENT, deep, **options)(mine, theirs, labels()).item() == pytest.approx(expected, rel=1e-12)


def test_maps_of_another_size_are_brought_to_the_students():
    large = replace(TEACHER, attention=((4, 12, 12), (8, 6, 6)))
    mine, theirs = seen(0), seen(1, large)
    shrunk = tuple((channel, resized(spatial, own)) for (channel, spatial), (_, own) in
                   zip(theirs.attention, mine.attention, strict=True))  # fmt: skip
    assert [spatial.shape[2:] for _, spatial in shrunk] == [(6, 6), (3, 3)]
    given = made(STUDENT, large)(mine, theirs, labels())
    assert given == made()(mine, replace(theirs, attention=shrunk), labels())


def test_units_of_one_shape_may_meet_teachers_of_other_sizes_in_half_precision():
    small, mixed = (replace(TEACHER, attention=shapes) for shapes in (((4, 6, 6),) * 2, ((4, 12, 12), (4, 6, 6))))
    mine, theirs = seen(0, small, dtype=torch.bfloat16), seen(1, mixed, dtype=torch.bfloat16)
    widened = [replace(of, attention=tuple((c.float(), s.float()) for c, s in of.attention)) for of in (mine, theirs)]
    distiller = made(small, mixed)
    assert distiller(mine, theirs, labels()) == distiller(*widened, labels()) > 0


def test_resizing_leaves_nothing_out_and_makes_no_steps():
    spots = torch.eye(144).reshape(144, 1, 12, 12)  # one bright place in each
    assert (resized(spots, torch.zeros(1, 1, 4, 4)).sum(dim=(1, 2, 3)) > 0).all()
    flat = torch.full((1, 2, 7, 5), 3.0)
    torch.testing.assert_close(resized(flat, torch.zeros(1, 1, 4, 9)), torch.full((1, 2, 4, 9), 3.0))
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    assert (resized(ramp, torch.zeros(1, 1, 4, 6)).diff(dim=3) > 0).all()
    assert resized(ramp, torch.zeros(1, 9, 4, 4)) is ramp


NARROW = replace(TEACHER, attention=((2, 6, 6), (8, 3, 3)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"teacher": replace(TEACHER, attention=TEACHER.attention * 2)},
            "2 of the student Small, 4 of the teacher Large",
        ),
        ({"teacher": replace(TEACHER, attention=TEACHER.attention * 2)}, "blocks and in teacher_blocks"),
        ({"student": replace(STUDENT, attention=())}, "student Small has no attention.*backbone.attention=cbam"),
        ({"teacher": NARROW}, "unit 0 of the student Small has 4 numbers, .* teacher Large 2: set channel=false"),
        ({"blocks": [0, 2]}, r"blocks=\[0, 2\]: the student Small has 2 attention units, choose from 0 to 1"),
        ({"blocks": [0], "teacher_blocks": [-1]}, r"teacher_blocks=\[-1\]"),
        ({"blocks": []}, r"blocks=\[\]"),
        ({"channel": False, "spatial": False}, "nothing to compare"),
        ({"weight": -1.0}, "weight=-1"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        made(**change)


def test_without_channel_maps_widths_may_differ():
    assert made(teacher=NARROW, channel=False)(seen(0), seen(1, NARROW), labels()) > 0
