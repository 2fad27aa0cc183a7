"""The antialiased kernels against torch's in float64, Pillow's in bytes and OpenCV's blur."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from facelab.data.synthetic import render
from facelab.resampling import (
    BETWEEN,
    ENLARGING,
    SHRINKING,
    WEIGHT,
    antialiased,
    check_kernels,
    down_and_up,
    gaussian,
    resample,
    resample_image,
    whole,
)

SIDE = 112
SIZES = (1, 7, 14, 24, 28, 37, 56, 111, 112)


@pytest.fixture(scope="module")
def faces():
    return np.stack([render(0, person, 1, SIDE, 1.0) for person in range(3)])


def by_torch(kernel, old, new):
    """What torch makes of each unit vector along one axis, in float64: its matrix."""
    rows = torch.eye(old, dtype=torch.float64).view(old, 1, old, 1).expand(old, 1, old, 2)
    if kernel == "nearest":
        result = torch.nn.functional.interpolate(rows, (new, 2), mode="nearest-exact")
    else:
        result = torch.nn.functional.interpolate(rows, (new, 2), mode=kernel, antialias=True, align_corners=False)
    return result[:, 0, :, 0].T.numpy()


@pytest.mark.parametrize("kernel", ["bicubic", "bilinear", "nearest"])
@pytest.mark.parametrize("size", SIZES)
def test_kernels_are_torchs_in_float64(kernel, size):
    for old, new in ((SIDE, size), (size, SIDE)):
        ours, theirs = antialiased(kernel, old, new), by_torch(kernel, old, new)
        # A centre on the edge of two pixels is the right one's; torch's floating point takes the left one at times.
        clear = (2 * np.arange(new) + 1) * old % (2 * new) != 0 if kernel == "nearest" else slice(None)
        assert np.abs(ours - theirs)[clear].max(initial=0) < 1e-12
    assert antialiased("nearest", SIDE, 14).argmax(1).tolist() == list(range(4, SIDE, 8))


@pytest.mark.parametrize("size", SIZES)
def test_area_is_the_mean_over_what_a_pixel_covers(size):
    fine = np.repeat(np.random.default_rng(0).normal(size=SIDE), size)  # size · 112 places: both grids fit in
    expected = fine.reshape(size, SIDE).mean(1)
    assert np.abs(antialiased("area", SIDE, size) @ fine[::size] - expected).max() < 1e-12


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SHRINKING), st.integers(1, 70), st.integers(1, 70))
def test_a_flat_image_stays_flat_and_a_mirrored_one_mirrored(kernel, old, new):
    if new > old and kernel == "area":
        return
    weights = antialiased(kernel, old, new)
    assert weights.shape == (new, old)
    assert np.abs(weights.sum(1) - 1).max() < 1e-12
    if kernel != "nearest":  # whose ties have a side
        assert np.abs(weights - weights[::-1, ::-1]).max() < 1e-9
    if old == new:
        assert np.abs(weights - np.eye(old)).max() < 1e-12


@pytest.mark.parametrize(
    ("kernel", "theirs"), [("bicubic", Image.Resampling.BICUBIC), ("bilinear", Image.Resampling.BILINEAR)]
)
@pytest.mark.parametrize("size", [14, 24, 56])
def test_bytes_are_those_of_float64_and_nearly_pillows(faces, kernel, theirs, size):
    ((down,), (up,)) = down_and_up(SIDE, [size], kernel, kernel)
    for face in faces:
        small = np.asarray(Image.fromarray(face).resize((size, size), theirs))
        for image, weights, old, new in ((face, down, SIDE, size), (small, up, size, SIDE)):
            ours = resample_image(image, weights).astype(float)
            exact = antialiased(kernel, old, new)
            exact = np.einsum("ij,jkc,lk->ilc", exact, image.astype(float), exact, optimize=True)
            assert np.abs(ours - np.clip(exact, 0, 255)).max() < 0.9  # half a level is the rounding to bytes
            # Pillow rounds and cuts to bytes between the axes as well: in places it is off by several levels.
            assert np.abs(ours - np.asarray(Image.fromarray(image).resize((new, new), theirs))).mean() < 0.3


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5])
def test_the_blur_is_opencvs(sigma):
    image = np.random.default_rng(0).normal(size=(40, 40))
    weights = gaussian(sigma, 40)
    side = 2 * int(np.ceil(4 * sigma)) + 1
    expected = cv2.GaussianBlur(image, (side, side), sigma, borderType=cv2.BORDER_REPLICATE)
    assert np.abs(weights @ image @ weights.T - expected).max() < 1e-6
    assert np.array_equal(gaussian(0, 5), np.eye(5))


@pytest.mark.parametrize("kernel", SHRINKING)
@pytest.mark.parametrize("enlarge", ENLARGING)
def test_a_batch_an_image_and_numpy_give_the_same_bytes(faces, kernel, enlarge):
    sizes = [14, 56, 37]
    down, up = down_and_up(SIDE, sizes, kernel, enlarge)
    assert down.shape == (3, 56, SIDE)
    assert up.shape == (3, SIDE, 56)
    batch = resample(torch.from_numpy(faces).float(), torch.from_numpy(down))
    back = resample(batch, torch.from_numpy(up)).numpy()
    for number, size in enumerate(sizes):
        one_down, one_up = down_and_up(SIDE, [size], kernel, enlarge)
        small = resample_image(faces[number], one_down[0])
        assert np.array_equal(batch[number, :size, :size], small)
        assert np.array_equal(back[number], resample_image(small, one_up[0]))


def test_whole_numbers_are_exact_in_float32_and_coarser():
    """Sums of products stay below 2^24, and pixels in quarters have the 11 bits of TensorFloat-32."""
    made = [down_and_up(SIDE, [size], kernel, enlarge)[which][0]
            for size in (14, 37, 56) for kernel in SHRINKING for enlarge in ENLARGING for which in (0, 1)]  # fmt: skip
    for weights in [*made, whole(gaussian(1.3, SIDE))]:
        largest = np.abs(weights.astype(int)).sum(-1).max()
        overshoot = largest / WEIGHT * 255 * BETWEEN
        assert overshoot < 2**11
        assert overshoot * largest < 2**24


@pytest.mark.parametrize(
    ("kernel", "enlarge", "line"),
    [
        ("lanczos", "bicubic", r"^x\.kernel is 'lanczos': give one of bicubic, bilinear, area, nearest$"),
        ("area", "area", r"^x\.enlarge is 'area': give one of bicubic, bilinear, nearest$"),
    ],
)
def test_an_unknown_kernel_is_refused(kernel, enlarge, line):
    with pytest.raises(ValueError, match=line):
        check_kernels("x.", kernel, enlarge)
