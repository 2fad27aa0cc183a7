"""Low resolution and surveillance: what they do to an image, and that it depends on the image's draws alone."""

import numpy as np
import pytest
import torch
from PIL import Image

from facelab.data import degrade
from facelab.data.augment import Augment
from facelab.data.degrade import LowResolution, Untouched
from facelab.data.jpeg import compress
from facelab.data.plan import Plan, uniforms
from facelab.data.surveillance import _DEVIATION, Surveillance, _mix, _sums, _whole_blocks
from facelab.data.synthetic import render
from facelab.data.torch_loader import TrainLoader

SIDE = 48
LOW = {"prob": 1.0, "sizes": [6, 12, 24], "kernel": "bicubic", "enlarge": "bicubic", "validation": False}
OFF = {"blur": None, "noise": None, "jpeg": None}
ALL = {"blur": [0.0, 2.0], "noise": [0.0, 8.0], "jpeg": [30, 90]}


@pytest.fixture(scope="module")
def faces():
    return torch.from_numpy(np.stack([render(0, person, 1, SIDE, 1.0) for person in range(12)]))


def low(**changes):
    return LowResolution(**{**LOW, **changes})


def camera(**changes):
    return Surveillance(**{**LOW, **ALL, **changes})


def draws(count=12, seed=0, columns=Surveillance.draws):
    return torch.from_numpy(uniforms(seed, 0, np.arange(count), columns))


# --- what it does -----------------------------------------------------------------------------------------------------


def test_each_image_has_the_size_that_it_drew(faces):
    numbers = draws()
    result = low()(faces, numbers).numpy()
    which = (numbers[:, 1].numpy() * 3).astype(int)
    assert set(which) == {0, 1, 2}
    for face, size, got in zip(faces.numpy(), np.array(LOW["sizes"])[which], result, strict=True):
        small = Image.fromarray(face).resize((size, size), Image.Resampling.BICUBIC)
        difference = np.abs(got.astype(int) - np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC)))
        assert difference.mean() < 0.6  # Pillow cuts to bytes between the axes; see tests/test_resampling.py
        assert (difference > 2).mean() < 0.01


def test_sizes_are_drawn_alike_and_only_as_many_images_as_asked():
    face = torch.from_numpy(render(0, 0, 0, SIDE, 1.0))[None]
    numbers = draws(1500, columns=2)
    changed = (low(prob=0.3)(face.expand(1500, -1, -1, -1), numbers) != face).flatten(1).any(1)
    assert torch.equal(changed, numbers[:, 0] < 0.3)
    expected = torch.cat([low(sizes=size)(face, numbers[:1]) for size in LOW["sizes"]])
    got = low()(face.expand(1500, -1, -1, -1), numbers)
    counts = [(got == one).flatten(1).all(1).sum().item() for one in expected]
    assert sum(counts) == 1500
    assert min(counts) > 420  # 500, standard deviation 18


@pytest.mark.parametrize("kernel", ["bicubic", "bilinear", "area"])
def test_the_images_own_size_changes_nothing(faces, kernel):
    assert torch.equal(low(sizes=[SIDE], kernel=kernel)(faces, draws()), faces)


def test_a_camera_without_its_faults_is_low_resolution(faces):
    assert torch.equal(camera(**OFF)(faces, draws()), low()(faces, draws()))
    for name in OFF:
        assert not torch.equal(camera(**{**OFF, name: ALL[name]})(faces, draws()), low()(faces, draws())), name


def test_noise_has_the_deviation_that_was_drawn_and_no_pattern():
    numbers = draws(300)
    grey = torch.full((300, 24, 24, 3), 128, dtype=torch.uint8)
    made = camera(**{**OFF, "noise": [2.0, 20.0]}, sizes=[24])
    noise = made(grey, numbers).double() - 128
    wanted = 2 + 18 * numbers[:, 3].double()
    found = noise.flatten(1).std(1)
    assert (found / (wanted**2 + 1 / 12).sqrt() - 1).abs().max() < 0.1  # of 1,728 pixels; rounding adds 1/12
    assert abs(float((noise / wanted[:, None, None, None]).mean())) < 0.01
    rows = np.corrcoef(noise.flatten(1).numpy())
    assert np.abs(rows - np.eye(300)).max() < 0.13  # 45,000 of them, standard deviation 0.024
    for shift in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (8, 8, 0)):
        moved = noise.roll(shift, (1, 2, 3))
        assert abs(np.corrcoef(noise.flatten(), moved.flatten())[0, 1]) < 0.01
    raw = _sums(numbers[:, 5:7], 24) / _DEVIATION
    assert abs(float(raw.std()) - 1) < 0.01
    assert abs(float((raw**4).mean()) - 2.7) < 0.1  # of four bytes: 3 − 6/(5·4); a normal's is 3


def test_the_hash_is_murmurs():
    def mix(word):
        word ^= word >> 16
        word = word * 0x85EBCA6B & 0xFFFFFFFF
        word ^= word >> 13
        word = word * 0xC2B2AE35 & 0xFFFFFFFF
        return word ^ word >> 16

    words = [0, 1, 2**31, 2**32 - 1, 123456789]
    assert _mix(torch.tensor(words)).tolist() == [mix(word) for word in words]


def test_blocks_beyond_the_image_repeat_its_edge(faces):
    small = faces[:2, :20, :20].float()
    filled = _whole_blocks(small, torch.tensor([20, 13]))
    assert filled.shape == (2, 24, 24, 3)
    assert torch.equal(filled[0, :20, :20], small[0])
    assert torch.equal(filled[1, 13:, :13], small[1, 12:13, :13].expand(11, -1, -1))
    assert torch.equal(filled[1, 13:, 13:], small[1, 12, 12].expand(11, 11, 3))


def test_jpeg_meets_the_small_image_with_the_quality_that_was_drawn(faces):
    numbers = draws()
    got = camera(**{**OFF, "jpeg": [20, 60]}, sizes=[SIDE])(faces, numbers)
    quality = 20 + (numbers[:, 4].double() * 41).long()
    assert torch.equal(got, compress(faces.float(), quality).to(torch.uint8))


# --- what it promises -------------------------------------------------------------------------------------------------


def test_an_image_does_not_depend_on_its_batch(faces):
    numbers = draws()
    whole = camera(prob=0.7)(faces, numbers)
    assert torch.equal(whole[3:8], camera(prob=0.7)(faces[3:8], numbers[3:8]))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(whole[order], camera(prob=0.7)(faces[order], numbers[order]))
    assert all(torch.equal(whole[i : i + 1], camera(prob=0.7)(faces[i : i + 1], numbers[i : i + 1])) for i in range(12))
    other = draws(seed=1)
    assert not torch.equal(whole, camera(prob=0.7)(faces, other))


def test_switching_one_fault_off_leaves_the_draws_of_the_others(faces):
    numbers = draws()
    quiet = camera(**{**ALL, "noise": [0.0, 0.0]})(faces, numbers)
    assert torch.equal(quiet, camera(noise=None)(faces, numbers))
    assert torch.equal(camera(blur=[0, 0])(faces, numbers), camera(blur=None)(faces, numbers))


def test_mixed_precision_coarse_multiplications_and_a_gpus_way_change_nothing(faces, monkeypatch):
    numbers = draws()
    expected = camera(prob=0.7)(faces, numbers)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(camera(prob=0.7)(faces, numbers), expected)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert torch.equal(camera(prob=0.7)(faces, numbers), expected)
    finally:
        torch.set_float32_matmul_precision(before)

    def all_of_them(images, draws, probability, change):
        return torch.where((draws[:, 0] < probability)[:, None, None, None], change(images, draws[:, 1:]), images)

    monkeypatch.setattr(degrade, "change_some", all_of_them)
    assert torch.equal(camera(prob=0.7)(faces, numbers), expected)


def test_draws_at_the_ends_of_their_range(faces):
    numbers = torch.full((3, 7), 1 - 2.0**-24)
    numbers[1] = 0
    result = camera()(faces[:3], numbers)
    assert (result.shape, result.dtype) == (faces[:3].shape, torch.uint8)
    before = faces.clone()
    low()(faces, draws())
    assert torch.equal(faces, before), "the images given stay as they are"
    assert camera().state_dict() == {}


class Faces:
    """A source of few images for the loader."""

    size = SIDE

    def __init__(self, images):
        self.images, self.labels = images, np.arange(len(images))

    def __len__(self):
        return len(self.images)

    def load(self, index, out=None):
        return self.images[index]


def epoch(faces, batch, world, threads):
    """Image number → its pixels after augmentation and degrading, over the ranks of one epoch."""
    augment, made, found = Augment(0.5, 2), camera(prob=0.7), {}
    plan = Plan(len(faces), batch, seed=5)
    everything = np.arange(len(faces))
    for rank in range(world):
        loader = TrainLoader(
            Faces(faces.numpy()), everything, everything, plan, 5, augment.draws + made.draws, 0, plan.steps_per_epoch,
            rank, world, threads, 2, False,
        )  # fmt: skip
        for images, _, numbers, indices in loader:
            degraded = made(augment(images, numbers[:, : augment.draws]), numbers[:, augment.draws :])
            found.update(zip(indices.tolist(), degraded.clone(), strict=True))
    return [found[i] for i in range(len(faces))]


def test_threads_batches_and_ranks_change_nothing(faces):
    expected = torch.stack(epoch(faces, batch=12, world=1, threads=1))
    for batch, world, threads in ((4, 1, 3), (12, 2, 1), (6, 3, 2)):
        assert torch.equal(torch.stack(epoch(faces, batch, world, threads)), expected)


def test_what_is_degraded_does_not_change_how_it_is_augmented():
    assert np.array_equal(uniforms(1, 2, np.arange(5), 3), uniforms(1, 2, np.arange(5), 10)[:, :3])


def test_untouched_is_untouched(faces):
    made = Untouched()
    made.check(1)
    assert made(faces, draws(columns=0)) is faces


# --- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"prob": 1.5}, r"data\.degrade\.prob is 1\.5: it is a probability, between 0 and 1"),
        ({"sizes": []}, r"data\.degrade\.sizes is empty: name at least one size"),
        ({"sizes": [14, 0]}, r"data\.degrade\.sizes has 0: a size is a whole number of pixels, at least 1"),
        ({"sizes": 0}, r"data\.degrade\.sizes has 0"),
        ({"sizes": [14.5]}, r"data\.degrade\.sizes has 14\.5"),
        ({"kernel": "lanczos"}, r"data\.degrade\.kernel is 'lanczos': give one of bicubic, bilinear, area, nearest"),
        ({"enlarge": "area"}, r"data\.degrade\.enlarge is 'area': give one of bicubic, bilinear, nearest"),
        ({"blur": [2.0, 1.0]}, r"data\.degrade\.blur is \[2\.0, 1\.0\]: give the smallest and the largest"),
        ({"noise": [-1.0, 1.0]}, r"data\.degrade\.noise"),
        ({"jpeg": [0, 50]}, r"data\.degrade\.jpeg is \[0, 50\]: .* with 1 ≤ a ≤ b ≤ 100, or null for none"),
        ({"jpeg": [50]}, r"data\.degrade\.jpeg is \[50\]"),
    ],
)
def test_settings_out_of_range_are_refused(changes, line):
    with pytest.raises(ValueError, match=line):
        camera(**changes)


def test_a_size_above_the_images_is_refused(faces):
    line = r"^data\.degrade\.sizes has 49, but images have 48 pixels and only become smaller: give sizes up to 48$"
    with pytest.raises(ValueError, match=line):
        low(sizes=[12, 49]).check(SIDE)
    with pytest.raises(ValueError, match=line):
        low(sizes=[12, 49])(faces, draws())
    with pytest.raises(ValueError, match="4×5 pixels"):
        low(sizes=[2])(torch.zeros(1, 4, 5, 3, dtype=torch.uint8), draws(1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_gives_the_same_pixels(faces):
    expected = camera(prob=0.7)(faces, draws())
    assert torch.equal(camera(prob=0.7)(faces.cuda(), draws().cuda()).cpu(), expected)
