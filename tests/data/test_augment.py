import numpy as np
import pytest
import torch

from facelab.data.augment import Augment, normalise
from facelab.data.plan import uniforms


def batch(count=32, height=12, width=10):
    images = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return images, uniforms(0, 0, np.arange(count), Augment.draws)


def one_by_one(images, draws, mirror, crop):
    """The same in plain NumPy: mirror, pad by repeating the edge, cut out."""
    results = []
    for image, (chance, down, right) in zip(images, draws, strict=True):
        height, width = image.shape[:2]
        mirrored = image[:, ::-1] if chance < mirror else image
        padded = np.pad(mirrored, ((crop, crop), (crop, crop), (0, 0)), mode="edge")
        top, left = int(down * (2 * crop + 1)), int(right * (2 * crop + 1))
        results.append(padded[top : top + height, left : left + width])
    return np.stack(results)


@pytest.mark.parametrize(("mirror", "crop"), [(0.5, 3), (0.5, 0), (0.0, 4), (1.0, 1), (0.3, 30)])
def test_equals_augmenting_one_image_after_another(mirror, crop):
    images, draws = batch()
    result = Augment(mirror, crop)(torch.from_numpy(images), torch.from_numpy(draws))
    assert result.dtype == torch.uint8
    expected = one_by_one(images, draws, mirror, crop)
    assert np.array_equal(result.numpy(), expected)
    assert not np.array_equal(expected, images)


def test_mirror_one_turns_every_image_and_zero_none():
    images, draws = (torch.from_numpy(array) for array in batch())
    assert torch.equal(Augment(1.0, 0)(images, draws), images.flip(2))
    assert torch.equal(Augment(0.0, 0)(images, draws), images)


def test_mirrors_as_often_as_asked():
    images = torch.zeros((4000, 1, 2, 3), dtype=torch.uint8)
    images[:, :, 0] = 1
    mirrored = Augment(0.3, 0)(images, torch.from_numpy(uniforms(0, 0, np.arange(4000), 3)))[:, 0, 1, 0]
    assert 0.26 < mirrored.float().mean() < 0.34  # standard deviation 0.007


def test_every_shift_up_to_crop_occurs_equally_often():
    image = torch.zeros((1, 11, 11, 3), dtype=torch.uint8)
    image[:, 5, 5] = 1
    draws = torch.from_numpy(uniforms(0, 0, np.arange(5000), 3))
    points = Augment(0.0, 2)(image.expand(5000, -1, -1, -1), draws)[..., 0].nonzero()
    assert len(points) == 5000
    counts = np.histogram2d(*(points[:, 1:] - 5).numpy().T, bins=5, range=[(-2.5, 2.5)] * 2)[0]
    assert counts.sum() == 5000
    assert counts.min() > 120  # 200 expected, standard deviation 14
    assert counts.max() < 280


def test_a_draw_just_below_one_is_no_shift_too_far():
    image = torch.arange(9, dtype=torch.uint8)[None, None, :, None].expand(1, 1, 9, 3)
    draws = torch.full((1, 3), 1 - 2.0**-24)
    for crop in range(1, 9):
        assert Augment(0.0, crop)(image, draws)[0, 0, 0, 0] == crop


def test_an_image_does_not_depend_on_its_batch():
    images, draws = (torch.from_numpy(array) for array in batch())
    augment = Augment(0.5, 3)
    assert torch.equal(augment(images, draws)[5:9], augment(images[5:9], draws[5:9]))


def test_switching_the_crop_off_mirrors_the_same_images():
    images, draws = (torch.from_numpy(array) for array in batch(height=1))
    images = images[:, :, :1].expand(-1, -1, 8, -1).contiguous()
    images[:, :, 4:] = 255 - images[:, :, 4:]
    with_crop, without = Augment(0.5, 1)(images, draws), Augment(0.5, 0)(images, draws)
    assert torch.equal(with_crop[:, :, 0], without[:, :, 0])
    assert not torch.equal(without, images)


def test_the_images_given_stay_as_they_are():
    images, draws = (torch.from_numpy(array) for array in batch())
    before = images.clone()
    normalise(Augment(0.5, 3)(images, draws))
    floats = images.float()
    normalise(floats)
    assert torch.equal(images, before)
    assert torch.equal(floats, before.float())


@pytest.mark.parametrize(("mirror", "crop"), [(-0.1, 0), (1.1, 0), (float("nan"), 0), (0.5, -1)])
def test_settings_out_of_range_are_refused(mirror, crop):
    with pytest.raises(ValueError, match=r"mirror is|crop is"):
        Augment(mirror, crop)


def test_normalise_maps_bytes_to_minus_one_and_one_in_channels_last_memory():
    images = torch.from_numpy(batch(256, 2, 2)[0])
    images[:, 0, 0] = torch.arange(256, dtype=torch.uint8)[:, None]
    result = normalise(images)
    assert result.shape == (256, 3, 2, 2)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    expected = images.permute(0, 3, 1, 2).double() / 127.5 - 1
    assert torch.allclose(result.double(), expected, rtol=0, atol=1e-7)
    assert result.min() == -1
    assert result.max() == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_gives_the_same_pixels():
    images, draws = (torch.from_numpy(array) for array in batch())
    augment = Augment(0.5, 3)
    assert torch.equal(augment(images.cuda(), draws.cuda()).cpu(), augment(images, draws))
