import math

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from facelab.data import adaface_augment
from facelab.data.adaface_augment import AdaFaceAugment
from facelab.data.plan import uniforms
from facelab.resampling import BETWEEN, INTERPOLATIONS, WEIGHT, matrix, tables

SIDE = 32
OFF = {"mirror": 0, "crop_prob": 0, "crop_scale": 0.2, "low_res_prob": 0, "low_res_scale": 0.2}
OFF |= {"photometric_prob": 0, "jitter": 0.5}
FLAGS = {name: getattr(cv2, f"INTER_{name.upper()}") for name in INTERPOLATIONS}


def augment(**changes):
    return AdaFaceAugment(**{**OFF, **changes})


def usual():
    return augment(mirror=0.5, crop_prob=0.4, low_res_prob=0.4, photometric_prob=0.4)


def faces(count=24, side=SIDE):
    """Smooth images with edges in them: interpolations of pure noise say little."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    images = np.stack([cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC) for image in small])
    images[:, side // 3 : side // 2, side // 4 :] //= 2
    return torch.from_numpy(images)


def draws(count=24, seed=0):
    return torch.from_numpy(uniforms(seed, 0, np.arange(count), AdaFaceAugment.draws))


# --- resizing by matrices ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "area", "cubic", "lanczos4"])
@pytest.mark.parametrize("size", [7, 15, 16, 21, 31, 32])
def test_matrices_resize_as_opencv(kind, size):
    image = faces(1)[0].numpy()
    for old, new, source in ((SIDE, size, image), (size, SIDE, image[:size, :size])):
        weights = matrix(kind, old, new)
        ours = np.einsum("ij,jkc,lk->ilc", weights, source.astype(float), weights, optimize=True)
        theirs = cv2.resize(source, (new, new), interpolation=FLAGS[kind]).astype(float)
        difference = np.abs(np.clip(ours, 0, 255) - theirs)
        assert difference.max() < 2  # OpenCV rounds weights, and for some kinds between the axes
        assert difference.mean() < 0.5


@pytest.mark.parametrize(("old", "new"), [(32, 7), (32, 21), (7, 32), (21, 32), (5, 5)])
def test_the_nearest_is_the_pixel_at_the_upper_left_corner(old, new):
    # Not held against OpenCV, whose floating point takes the pixel before where the corner falls on a boundary.
    weights = matrix("nearest", old, new)
    assert np.array_equal(weights.argmax(1), [place * old // new for place in range(new)])
    assert np.array_equal(weights.sum(1), np.ones(new))
    assert set(np.unique(weights)) <= {0, 1}


def test_tables_hold_the_matrices_in_whole_numbers():
    down, up = tables(SIDE, 6)
    assert down.shape == up.shape == (5, SIDE - 5, SIDE, SIDE)
    for number, kind in enumerate(INTERPOLATIONS):
        for size in (6, 17, SIDE):
            shrinking, enlarging = down[number, size - 6], up[number, size - 6]
            assert np.abs(shrinking[:size] / WEIGHT - matrix(kind, SIDE, size)).max() < 4 / WEIGHT
            assert np.abs(enlarging[:, :size] / WEIGHT - matrix(kind, size, SIDE)).max() < 4 / WEIGHT
            assert not shrinking[size:].any()
            assert not enlarging[:, size:].any()
    assert (up.astype(int).sum(-1) == WEIGHT).all()
    # Sums of products stay below 2^24, also in quarters of a level: float32 adds them exactly, in any order.
    largest = max(np.abs(table.astype(int)).sum(-1).max() for table in (down, up))
    overshoot = largest / WEIGHT * 255 * BETWEEN
    assert overshoot < 2**11, "one more bit than TensorFloat-32 has"
    assert overshoot * largest < 2**24


# --- against plain code for one image ---------------------------------------------------------------------------------


def crop(image, area, ratio, down, right, smallest):
    """The published code's RandomResizedCrop, with the rectangle left where it is; ratio and area by bisection."""
    widest = min(math.log(4 / 3), -math.log(smallest))

    def cumulative(t):
        return (1 - math.exp(-t) - smallest * t) / (1 - math.exp(-widest) - smallest * widest)

    low, high = 0.0, widest
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if cumulative(middle) < abs(2 * ratio - 1) else (low, middle)
    area = smallest + area * (math.exp(-low) - smallest)
    log_ratio = math.copysign(low, 2 * ratio - 1)
    side = len(image)
    height, width = (round(side * math.sqrt(area * math.exp(sign * log_ratio))) for sign in (-1, 1))
    top, left = int(down * (side - height + 1)), int(right * (side - width + 1))
    result = np.zeros_like(image)
    result[top : top + height, left : left + width] = image[top : top + height, left : left + width]
    return result


def low_resolution(image, share, down, up, smallest):
    size = int((smallest + share * (1 - smallest)) * len(image))
    kinds = [FLAGS[INTERPOLATIONS[int(draw * 5)]] for draw in (down, up)]
    small = cv2.resize(image, (size, size), interpolation=kinds[0])
    return cv2.resize(small, image.shape[:2], interpolation=kinds[1])


def photometric(image, brightness, contrast, saturation, order, jitter):
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    factors = [round((1 - jitter + 2 * jitter * float(d)) * 1024) / 1024 for d in (brightness, contrast, saturation)]
    order = int(order * 6)
    first = order % 3
    second = (first + 1 + order // 3) % 3
    image = Image.fromarray(image)
    for number in (first, second, 3 - first - second):
        image = kinds[number](image).enhance(factors[number])
    return np.asarray(image)


@pytest.mark.parametrize("smallest", [0.02, 0.2, 0.7])
def test_the_rectangle_is_that_of_plain_code(smallest):
    images, numbers = faces(200), draws(200)
    result = augment(crop_prob=1, crop_scale=smallest)(images, numbers)
    expected = [crop(i.numpy(), *d[2:6].tolist(), smallest) for i, d in zip(images, numbers, strict=True)]
    assert np.array_equal(result, np.stack(expected))


def test_the_low_resolution_is_that_of_opencv():
    images, numbers = faces(300), draws(300)
    nearest = (numbers[:, 8:10] * 5).long() == INTERPOLATIONS.index("nearest")
    numbers[:, 8:10][nearest] += 0.2  # see test_the_nearest_is_the_pixel_at_the_upper_left_corner
    result = augment(low_res_prob=1)(images, numbers).numpy()
    expected = [low_resolution(i.numpy(), *d[7:10].tolist(), 0.2) for i, d in zip(images, numbers, strict=True)]
    difference = np.abs(result.astype(int) - np.stack(expected))
    assert difference.max() <= 3  # two resizes, each within rounding
    assert difference.mean() < 0.5
    assert np.abs(result.astype(int) - images.numpy()).mean() > 3


def test_the_colours_are_those_of_pillow():
    images, numbers = faces(300), draws(300)
    result = augment(photometric_prob=1)(images, numbers).numpy()
    expected = [photometric(i.numpy(), *d[11:15].tolist(), 0.5) for i, d in zip(images, numbers, strict=True)]
    assert np.array_equal(result, np.stack(expected))


def test_everything_at_once_in_order():
    images, numbers = faces(40), draws(40)
    smooth = torch.full_like(numbers[:, 8:10], 0.3)  # linear
    numbers[:, 8:10] = smooth
    result = augment(mirror=0.5, crop_prob=0.5, low_res_prob=0.5, photometric_prob=0.5)(images, numbers).numpy()
    for image, numbers_of, got in zip(images.numpy(), numbers.tolist(), result, strict=True):
        if numbers_of[1] < 0.5:
            image = crop(image, *numbers_of[2:6], 0.2)
        if numbers_of[6] < 0.5:
            image = low_resolution(image, *numbers_of[7:10], 0.2)
        if numbers_of[10] < 0.5:
            image = photometric(image, *numbers_of[11:15], 0.5)
        if numbers_of[0] < 0.5:
            image = image[:, ::-1]
        difference = np.abs(got.astype(int) - image)
        assert difference.max() <= 12  # a level before is up to 1.5³ levels after three factors
        assert difference.mean() < 1.5


# --- what it promises -------------------------------------------------------------------------------------------------


def test_nothing_changes_where_all_probabilities_are_zero():
    images = faces()
    assert torch.equal(augment()(images, draws()), images)
    assert torch.equal(augment(mirror=1)(images, draws()), images.flip(2))


@pytest.mark.parametrize("name", ["crop_prob", "low_res_prob", "photometric_prob", "mirror"])
def test_each_acts_as_often_as_asked_and_alone(name):
    count = 4000
    image = faces(1, side=8)
    images, numbers = image.expand(count, -1, -1, -1), draws(count)
    strong = {"crop_scale": 0.05, "low_res_scale": 0.2, name: 0.3}
    changed = (augment(**strong)(images, numbers) != image).flatten(1).any(1)
    column = {"mirror": 0, "crop_prob": 1, "low_res_prob": 6, "photometric_prob": 10}[name]
    assert not changed[numbers[:, column] >= 0.3].any()
    assert 0.26 < changed.float().mean() < 0.33  # 0.3, standard deviation 0.007; a few changes leave all as it was
    others = draws(count, seed=1)
    others[:, column] = numbers[:, column]
    again = (augment(**strong)(images, others) != image).flatten(1).any(1)
    assert (changed == again).float().mean() > 0.95


def test_kept_areas_and_ratios_are_torchvisions():
    from torchvision.transforms import RandomResizedCrop

    count, side = 1500, 60
    images = torch.ones(1, side, side, 3, dtype=torch.uint8).expand(count, -1, -1, -1)
    kept = augment(crop_prob=1)(images, draws(count))[..., 0]
    ours = torch.stack([kept.any(2).sum(1), kept.any(1).sum(1)], 1).float()
    torch.manual_seed(0)
    image = torch.empty(3, side, side)
    theirs = torch.tensor([RandomResizedCrop.get_params(image, [0.2, 1], [3 / 4, 4 / 3])[2:] for _ in range(count)])
    for of in (lambda hw: hw.prod(1) / side**2, lambda hw: (hw[:, 1] / hw[:, 0]).log()):
        levels = torch.linspace(0.05, 0.95, 19)
        distance = (of(ours).quantile(levels) - of(theirs.float()).quantile(levels)).abs().max()
        assert distance < 0.06  # of 0.8 (areas) and 0.58 (log ratios); sampling alone gives up to 0.03
    assert (kept.flatten(1).sum(1) == ours.prod(1)).all(), "a rectangle"


def test_an_image_does_not_depend_on_its_batch():
    images, numbers = faces(), draws()
    whole = usual()(images, numbers)
    assert torch.equal(whole[5:9], usual()(images[5:9], numbers[5:9]))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    assert torch.equal(whole[order], usual()(images[order], numbers[order]))
    assert all(torch.equal(whole[i : i + 1], usual()(images[i : i + 1], numbers[i : i + 1])) for i in range(8))


def test_switching_one_off_leaves_the_others_as_they_were():
    images, numbers = faces(), draws()
    untouched = (numbers[:, 6] >= 0.4).nonzero()[:, 0]
    without = augment(mirror=0.5, crop_prob=0.4, photometric_prob=0.4)
    assert torch.equal(usual()(images, numbers)[untouched], without(images, numbers)[untouched])


def test_the_way_of_a_gpu_gives_the_same(monkeypatch):
    """There every image is changed and the chosen ones are taken: to choose first would wait for the device."""
    images, numbers = faces(), draws()
    expected = usual()(images, numbers)

    def all_of_them(images, draws, probability, change):
        return torch.where((draws[:, 0] < probability)[:, None, None, None], change(images, draws[:, 1:]), images)

    monkeypatch.setattr(adaface_augment, "change_some", all_of_them)
    assert torch.equal(usual()(images, numbers), expected)


def test_mixed_precision_and_coarse_multiplications_change_nothing():
    images, numbers = faces(), draws()
    expected = usual()(images, numbers)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(usual()(images, numbers), expected)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert torch.equal(usual()(images, numbers), expected)
    finally:
        torch.set_float32_matmul_precision(before)


def test_draws_at_the_ends_of_their_range():
    images = faces(3)
    numbers = torch.full((3, 15), 1 - 2.0**-24)
    numbers[1] = 0
    numbers[2] = 0.5
    result = augment(mirror=1, crop_prob=1, low_res_prob=1, photometric_prob=1)(images, numbers)
    assert result.shape == images.shape
    assert result.dtype == torch.uint8
    widest = augment(crop_prob=1, crop_scale=1)(images, numbers)
    assert torch.equal(widest, images), "with all of the area kept, nothing is cut"
    assert torch.equal(augment(low_res_prob=1, low_res_scale=1)(images, numbers), images)
    assert torch.equal(augment(photometric_prob=1, jitter=0)(images, numbers), images)


def test_the_images_given_stay_as_they_are():
    images = faces()
    before = images.clone()
    usual()(images, draws())
    assert torch.equal(images, before)


def test_it_adds_nothing_to_a_checkpoint():
    module = usual()
    module(faces(), draws())
    assert module.state_dict() == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mirror": 1.1}, "mirror is 1.1: it is a probability"),
        ({"crop_prob": -0.1}, "crop_prob is -0.1: it is a probability"),
        ({"low_res_prob": float("nan")}, "low_res_prob is nan"),
        ({"photometric_prob": 2}, "photometric_prob is 2"),
        ({"crop_scale": 0}, "crop_scale is 0: it is the smallest share"),
        ({"low_res_scale": 1.5}, "low_res_scale is 1.5"),
        ({"jitter": -0.5}, "jitter is -0.5"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        augment(**changes)


def test_images_that_are_not_square_are_refused():
    with pytest.raises(ValueError, match="4×5 pixels"):
        usual()(torch.zeros(1, 4, 5, 3, dtype=torch.uint8), draws(1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_gives_the_same_pixels():
    images, numbers = faces(200), draws(200)
    expected = usual()(images, numbers)
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        assert torch.equal(usual()(images.cuda(), numbers.cuda()).cpu(), expected)
    torch.set_float32_matmul_precision("highest")
