import cv2
import numpy as np
import pytest

from facelab.data.folder import FolderFaces


def write(path, image, extension=".png"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(extension, image[..., ::-1])[1].tobytes())  # OpenCV encodes BGR


def picture(seed=0, height=8, width=8):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_identities_and_images_are_sorted_by_name(tmp_path):
    for number, name in enumerate(["b/2.png", "b/1.png", "a/x.png", "c/y.png"]):
        write(tmp_path / name, picture(number))
    faces = FolderFaces(tmp_path, 8)
    assert len(faces) == 4
    assert faces.num_classes == 3
    assert faces.identity_names == ["a", "b", "c"]
    assert faces.labels.tolist() == [0, 1, 1, 2]
    assert faces.labels.dtype == np.int64
    assert faces.size == 8
    for index, seed in enumerate([2, 1, 0, 3]):
        assert np.array_equal(faces.load(index), picture(seed))  # RGB, as it was written


def test_all_formats_are_read_and_anything_else_is_left_out(tmp_path):
    for extension in (".jpg", ".JPEG", ".png", ".BMP", ".webp"):
        write(tmp_path / "a" / f"1{extension}", picture(), extension.lower())
    write(tmp_path / "b" / "1.png", picture())
    write(tmp_path / "b" / "nested" / "2.png", picture())
    write(tmp_path / "b" / "._1.png", picture())
    (tmp_path / "b" / "folder.png").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("not an image")
    (tmp_path / "notes.txt").write_text("not a folder")
    (tmp_path / ".cache").mkdir()
    faces = FolderFaces(tmp_path, 8)
    assert faces.labels.tolist() == [0] * 5 + [1]
    assert faces.empty == []
    assert all(faces.load(index).shape == (8, 8, 3) for index in range(6))


def test_folders_without_images_are_counted_and_left_out(tmp_path):
    write(tmp_path / "a" / "1.png", picture())
    write(tmp_path / "c" / "1.png", picture())
    (tmp_path / "b").mkdir()
    faces = FolderFaces(tmp_path, 8)
    assert faces.empty == ["b"]
    assert faces.identity_names == ["a", "c"]
    assert faces.labels.tolist() == [0, 1]


def test_spaces_and_korean_letters_are_fine(tmp_path):
    write(tmp_path / "김 민준" / "얼굴 1.png", picture(1))
    write(tmp_path / "Ann O'Neil" / "a b.png", picture(2))
    faces = FolderFaces(tmp_path, 8)
    assert faces.identity_names == ["Ann O'Neil", "김 민준"]
    assert np.array_equal(faces.load(1), picture(1))
    assert faces.name(1) == "김 민준/얼굴 1.png"


@pytest.mark.parametrize(("stored", "how"), [(16, cv2.INTER_AREA), (5, cv2.INTER_CUBIC)])
def test_square_images_are_resized(tmp_path, stored, how):
    image = picture(0, stored, stored)
    write(tmp_path / "a" / "1.png", image)
    write(tmp_path / "b" / "1.png", picture())
    assert np.array_equal(FolderFaces(tmp_path, 8).load(0), cv2.resize(image, (8, 8), interpolation=how))


def test_a_grey_image_becomes_rgb(tmp_path):
    write(tmp_path / "a" / "1.png", picture())
    write(tmp_path / "b" / "1.png", picture())
    (tmp_path / "a" / "1.png").write_bytes(cv2.imencode(".png", picture()[..., 0])[1].tobytes())
    assert np.array_equal(FolderFaces(tmp_path, 8).load(0), np.repeat(picture()[..., :1], 3, axis=2))


def test_encoded_gives_the_bytes_of_the_file(tmp_path):
    write(tmp_path / "a" / "1.png", picture())
    write(tmp_path / "b" / "1.png", picture(1))
    faces = FolderFaces(tmp_path, 8)
    assert faces.encoded(1).tobytes() == (tmp_path / "b" / "1.png").read_bytes()


def test_bad_images_are_named_when_they_are_loaded(tmp_path):
    write(tmp_path / "a" / "wide.png", picture(0, 8, 9))
    write(tmp_path / "b" / "1.png", picture())
    (tmp_path / "b" / "empty.jpg").write_bytes(b"")
    (tmp_path / "b" / "text.jpg").write_bytes(b"not an image")
    faces = FolderFaces(tmp_path, 8)
    for index, message in {
        0: r"wide\.png: is 8×9 pixels, not square: align the faces first",
        2: r"empty\.jpg: is not a readable image",
        3: r"text\.jpg: is not a readable image",
    }.items():
        with pytest.raises(ValueError, match=message):
            faces.load(index)


def test_folders_that_are_no_set_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder; expected <root>/<identity>"):
        FolderFaces(tmp_path / "missing", 8)
    with pytest.raises(ValueError, match="no images in its 0 folders; expected <root>/<identity>"):
        FolderFaces(tmp_path, 8)
    write(tmp_path / "loose.png", picture())
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images in its 1 folders"):
        FolderFaces(tmp_path, 8)
    write(tmp_path / "a" / "1.png", picture())
    with pytest.raises(ValueError, match=r"one identity only \('a'\)"):
        FolderFaces(tmp_path, 8)
