"""Whatever a camera or a scanner writes is read upright, in three channels of eight bits, or refused with a reason."""

import struct

import cv2
import numpy as np
import pytest
import simplejpeg

from facelab.prepare.photograph import Unusable, encode, is_plain_jpeg, orientation, read


def picture(height=24, width=40, channels=3):
    smooth = np.random.default_rng(0).integers(0, 256, (3, 4, channels), dtype=np.uint8)
    return cv2.resize(smooth, (width, height)).reshape(height, width, channels)


def coded(image, ending, *options):
    return cv2.imencode(ending, image, list(options))[1].tobytes()


def with_exif(jpeg, turned, order="<", before=b""):
    """The same JPEG with an EXIF segment, behind whatever segments a program wrote before it."""
    mark = b"II" if order == "<" else b"MM"
    entries = struct.pack(f"{order}HHIHH", 0x0100, 3, 1, 7, 0) + struct.pack(f"{order}HHIHH", 0x0112, 3, 1, turned, 0)
    exif = b"Exif\0\0" + mark + struct.pack(f"{order}HIH", 42, 8, 2) + entries + bytes(4)
    return jpeg[:2] + before + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


def as_array(content):
    return np.frombuffer(content, np.uint8)


JPEG = coded(picture(), ".jpg", cv2.IMWRITE_JPEG_QUALITY, 95)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("turned", range(1, 9))
def test_a_turned_photograph_is_upright_as_opencv_has_it(turned, order):
    content = as_array(with_exif(JPEG, turned, order))
    assert orientation(content.tobytes()) == turned
    expected = cv2.imdecode(content, cv2.IMREAD_COLOR)
    found = read(content)
    assert found.shape == expected.shape == ((40, 24, 3) if turned >= 5 else (24, 40, 3))
    assert np.abs(found.astype(int) - expected).max() <= 2
    assert is_plain_jpeg(content) == (turned == 1)


def test_exif_is_found_behind_other_segments_and_nonsense_is_upright():
    note = b"\xff\xed" + struct.pack(">H", 300) + bytes(298)
    assert orientation(with_exif(JPEG, 6, before=note)) == 6
    assert orientation(with_exif(JPEG, 9)) == 1
    assert orientation(JPEG) == 1
    whole = with_exif(JPEG, 6)
    for end in range(len(whole) - len(JPEG) + 4):
        assert orientation(whole[:end]) in (1, 6)
    assert orientation(b"\xff\xd8\xff\xe1\x00\x10Exif\0\0II*\0\xff\xff\xff\xff" + JPEG) == 1


@pytest.mark.parametrize(
    ("content", "tolerance"),
    [
        (coded(picture(), ".png"), 0),
        (coded(picture(), ".bmp"), 0),
        (coded(picture(), ".tiff"), 0),
        (coded(picture().astype(np.uint16) * 257, ".png"), 0),
        (coded(picture().astype(np.uint16) * 257, ".tiff"), 0),
        (coded(np.dstack([picture(), np.full((24, 40), 9, np.uint8)]), ".png"), 0),
        (JPEG, 24),  # at its sharpest edge: chroma has half the resolution
        (coded(picture(), ".webp", cv2.IMWRITE_WEBP_QUALITY, 101), 0),
    ],
)
def test_every_format_gives_the_same_pixels(content, tolerance):
    found = read(as_array(content))
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - picture()).max() <= tolerance


@pytest.mark.parametrize("ending", [".png", ".jpg", ".tiff"])
def test_grey_becomes_three_equal_channels(ending):
    grey = picture(channels=1)
    deep = grey.astype(np.uint16) * 257 if ending != ".jpg" else grey
    found = read(as_array(coded(deep, ending)))
    assert found.shape == (24, 40, 3)
    assert np.abs(found.astype(int) - grey).max() <= (3 if ending == ".jpg" else 0)


def test_cmyk_is_what_opencv_makes_of_it_and_is_no_plain_jpeg():
    content = as_array(simplejpeg.encode_jpeg(picture(channels=4), 95, "CMYK"))
    assert np.array_equal(read(content), cv2.imdecode(content, cv2.IMREAD_COLOR))
    assert not is_plain_jpeg(content)
    with pytest.raises(Unusable, match="damaged or cut short"):
        read(content[:-100])


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (b"", "is an empty file"),
        (b"<html>404</html>", "is no image"),
        (b"\xff\xd8\xff", "is no image, or a damaged one"),
        (JPEG[:-40], "is damaged or cut short"),
        (JPEG[:30], "is no image, or a damaged one"),
        (coded(picture(), ".png")[:-60], "is cut short"),
        (coded(picture(), ".bmp")[:-60], "is cut short"),
    ],
)
def test_what_cannot_be_read_says_why(content, detail):
    with pytest.raises(Unusable) as caught:
        read(as_array(content))
    assert caught.value.reason == "unreadable"
    assert detail in caught.value.detail


def test_too_many_pixels_are_refused_before_they_are_made():
    header = bytearray(JPEG)
    at = header.index(b"\xff\xc0")
    header[at + 5 : at + 9] = struct.pack(">HH", 65000, 65000)
    with pytest.raises(Unusable, match="too many"):
        read(as_array(bytes(header)))


def test_jpeg_of_a_chosen_quality():
    assert len(encode(picture(), 50)) < len(encode(picture(), 98))
    assert is_plain_jpeg(as_array(encode(picture(), 95)))
    assert not is_plain_jpeg(as_array(coded(picture(channels=1), ".jpg")))
    assert not is_plain_jpeg(as_array(coded(picture(), ".png")))
