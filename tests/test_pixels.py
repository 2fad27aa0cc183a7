"""Bytes to pixels: whatever the format, what OpenCV makes of them."""

import io
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from PIL import Image

from facelab.pixels import decode, fit


def picture(height=40, width=40, seed=0):
    rough = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC)


def written(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return np.frombuffer(file.getvalue(), np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 20}])
def test_jpegs_have_opencvs_pixels(mode, options):
    encoded = written(Image.fromarray(picture()).convert(mode), "JPEG", **options)
    place = np.empty((40, 40, 3), np.uint8)
    np.testing.assert_array_equal(decode(encoded), cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB))
    assert decode(encoded, place) is place
    np.testing.assert_array_equal(place, decode(encoded))


@pytest.mark.parametrize("shape", [(40, 39), (50, 60), (10, 10)])
def test_another_shape_does_not_end_in_the_place_given(shape):
    place = np.zeros((40, 40, 3), np.uint8)
    made = decode(cv2.imencode(".jpg", picture(*shape))[1].ravel(), place)
    assert made is not place
    assert made.shape == (*shape, 3)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(picture()),
        Image.fromarray(picture()).convert("RGBA"),
        Image.fromarray(picture()).convert("L"),
        Image.fromarray(picture()).convert("P"),
    ],
)
@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_other_formats(image, format):
    made = decode(written(image, format, **({"lossless": True} if format == "WEBP" else {})))
    np.testing.assert_array_equal(made, np.asarray(image.convert("RGB")))


def test_sixteen_bits_become_eight():
    deep = (picture().astype(np.uint16) << 8) + 37
    encoded = cv2.imencode(".png", deep[..., ::-1])[1].ravel()
    np.testing.assert_array_equal(decode(encoded), picture())


@pytest.mark.parametrize("jfif", [True, False])
def test_an_exif_rotation_is_applied(jfif):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise
    encoded = written(Image.fromarray(picture(30, 40)), "JPEG", exif=exif, quality=100, subsampling=0)
    if jfif:
        plain = written(Image.fromarray(picture(30, 40)), "JPEG")
        header = plain[2:20] if plain[2:4].tobytes() == b"\xff\xe0" else None
        assert header is not None
        body = encoded[20:] if encoded[2:4].tobytes() == b"\xff\xe0" else encoded[2:]
        encoded = np.concatenate([encoded[:2], header, body])
    made = decode(encoded, np.empty((30, 40, 3), np.uint8))
    assert made.shape == (40, 30, 3)
    assert np.abs(made.astype(int) - np.rot90(picture(30, 40), -1)).mean() < 3


@pytest.mark.parametrize("size", [0, 3, 24, 200, 600])
def test_what_is_no_image_is_none(size):
    whole = cv2.imencode(".jpg", picture())[1].ravel()
    assert len(whole) > 600
    assert decode(whole[:size]) is None
    assert decode(whole[:size], np.empty((40, 40, 3), np.uint8)) is None
    assert decode(np.zeros(size, np.uint8)) is None


def test_many_threads_each_get_their_own():
    encoded = [cv2.imencode(".jpg", picture(seed=seed))[1].ravel() for seed in range(64)]
    batch = np.zeros((64, 40, 40, 3), np.uint8)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode, encoded, batch))
    for place, code in zip(batch, encoded, strict=True):
        np.testing.assert_array_equal(place, decode(code))


def test_fit_refuses_what_is_not_square():
    assert fit(picture(), 40, "x").shape == (40, 40, 3)
    assert fit(picture(), 20, "x").shape == (20, 20, 3)
    with pytest.raises(ValueError, match=r"a/b\.jpg: is 30×40 pixels, not square"):
        fit(picture(30, 40), 40, "a/b.jpg")
