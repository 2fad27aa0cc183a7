import cv2
import numpy as np
import pytest

from facelab.data.imagefolder import ImageFolder, centre_square
from facelab.data.inspect import inspect
from facelab.data.split import hold_out_images


def picture(seed=0, height=8, width=8):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path, image, extension=".png"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(extension, image[..., ::-1])[1].tobytes())  # OpenCV encodes BGR


def fill(root, *names):
    for number, name in enumerate(names):
        write(root / name, picture(number))


def folder(root, size=8, train="train", val="val"):
    return ImageFolder(root, size, train, val)


def test_the_training_part_comes_first_and_classes_are_its_folders(tmp_path):
    fill(tmp_path, "val/dog/1.png", "train/dog/b.png", "train/dog/a.png", "train/cat/x.png", "train/ox/y.png")
    images = folder(tmp_path)
    assert images.identity_names == ["cat", "dog", "ox"]  # nothing of ox is reported, which is fine
    assert images.labels.tolist() == [0, 1, 1, 2, 1]
    assert images.reported.tolist() == [False] * 4 + [True]
    assert [images.name(i) for i in range(5)][2:] == ["train/dog/b.png", "train/ox/y.png", "val/dog/1.png"]
    assert len(images) == 5
    assert images.labels.dtype == np.int64
    for index, seed in enumerate([3, 2, 1, 4, 0]):
        assert np.array_equal(images.load(index), picture(seed))


def test_classes_may_lie_in_the_root_and_images_deeper(tmp_path):
    fill(tmp_path, "b/images/2.png", "b/1.png", "a/x/y/z.png", "a/.hidden/1.png", "a/._1.png", ".cache/1.png")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    images = folder(tmp_path)
    assert [images.name(i) for i in range(len(images))] == ["a/x/y/z.png", "b/1.png", "b/images/2.png"]
    assert not images.reported.any()
    assert images.labels.tolist() == [0, 1, 1]


def test_a_class_may_be_called_train(tmp_path):
    fill(tmp_path, "car/1.png", "train/1.png", "val/1.png")
    assert folder(tmp_path).identity_names == ["car", "train", "val"]


def test_without_a_part_to_report_on_or_by_another_name(tmp_path):
    fill(tmp_path, "train/a/1.png", "train/b/1.png")
    assert not folder(tmp_path).reported.any()
    fill(tmp_path, "test/a/1.png")
    with pytest.raises(FileNotFoundError, match=r"has train/ and test/, but no val/: say with data\.val="):
        folder(tmp_path)
    assert folder(tmp_path, val="test").reported.tolist() == [False, False, True]
    assert not folder(tmp_path, val=None).reported.any()


def test_empty_folders_are_told_and_left_out(tmp_path):
    fill(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png")
    for name in ("train/c", "val/b", "val/c"):
        (tmp_path / name).mkdir()
    images = folder(tmp_path)
    assert images.identity_names == ["a", "b"]
    assert images.empty == ["train/c", "val/b", "val/c"]


def test_what_is_no_such_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data\.root=.*missing: no such folder; expected <root>/train"):
        folder(tmp_path / "missing")
    with pytest.raises(ValueError, match="has images of none of 0 classes, at least 2 are needed"):
        folder(tmp_path)
    fill(tmp_path, "val/a/1.png")
    with pytest.raises(FileNotFoundError, match=r"has val/ with a folder for each class, but no such train/"):
        folder(tmp_path)
    fill(tmp_path, "train/a/1.png")
    with pytest.raises(ValueError, match="has images only of 'a' of 1 classes, at least 2 are needed"):
        folder(tmp_path)
    fill(tmp_path, "train/b/1.png", "val/yak/1.png", "val/zebu/1.png")
    with pytest.raises(
        ValueError, match=r"val/yak has images, and train/yak none; so it is with 1 more: what is repor"
    ):
        folder(tmp_path)
    (tmp_path / "only").mkdir()
    with pytest.raises(ValueError, match=r"only has no images; put them there, or set data\.val=null"):
        folder(tmp_path, val="only")


@pytest.mark.parametrize(("height", "width"), [(20, 31), (31, 20), (5, 9), (8, 8), (16, 16), (1, 3)])
def test_the_middle_is_kept_whatever_the_shape(tmp_path, height, width):
    image = picture(0, height, width)
    write(tmp_path / "a" / "1.png", image)
    write(tmp_path / "b" / "1.png", picture())
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    how = cv2.INTER_AREA if side > 8 else cv2.INTER_CUBIC
    expected = square if side == 8 else cv2.resize(square, (8, 8), interpolation=how)
    out = np.empty((8, 8, 3), np.uint8)
    found = folder(tmp_path).load(0, out)
    assert np.array_equal(found, expected)
    assert found.shape == (8, 8, 3)


def test_the_middle_is_the_shorter_side_resized_and_the_rest_cut_off():
    ramp = np.repeat(np.arange(0, 240, 2, dtype=np.uint8)[None, :, None], 60, 0).repeat(3, 2)  # 60×120
    resized = cv2.resize(ramp, (24, 12), interpolation=cv2.INTER_AREA)
    assert np.array_equal(centre_square(ramp, 12), resized[:, 6:18])


def test_an_unreadable_image_is_named(tmp_path):
    fill(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png")
    write(tmp_path / "train" / "a" / "wide.jpg", picture(0, 8, 20), ".jpg")
    (tmp_path / "val" / "b").mkdir()
    (tmp_path / "val" / "b" / "broken.jpg").write_bytes(b"not an image")
    images = folder(tmp_path)
    with pytest.raises(ValueError, match=r"broken\.jpg: is not a readable image"):
        images.load(4)
    found = inspect(images, True, "skip", "keep", 1, lambda done, total: None)
    assert [odd.name for odd in found.odd if odd.kind == "unreadable"] == ["val/b/broken.jpg"]  # not the wide one
    assert found.kept.tolist() == [True] * 4 + [False]


LABELS = np.repeat(np.arange(4), [1, 2, 3, 40])


def test_a_share_of_each_class_is_held_out():
    trained, chooses, reports = hold_out_images(LABELS, 0.25, 0, 2)
    assert np.array_equal(np.sort(np.r_[trained, chooses, reports]), np.arange(46))
    counts = [np.bincount(LABELS[part], minlength=4).tolist() for part in (trained, chooses, reports)]
    assert counts == [[1, 1, 1, 30], [0, 1, 1, 5], [0, 0, 1, 5]]
    trained, chooses = hold_out_images(LABELS, 0.25, 0, 1)
    assert np.bincount(LABELS[chooses]).tolist() == [0, 1, 1, 10]


def test_more_are_the_same_and_more_and_the_seed_decides():
    small, large = (hold_out_images(LABELS, share, 3, 2) for share in (0.2, 0.6))
    assert set(small[1]) < set(large[1])
    assert set(small[2]) < set(large[2])
    assert not np.array_equal(large[1], hold_out_images(LABELS, 0.6, 4, 2)[1])
    with_others_left_out = np.where(np.arange(46) == 45, -1, LABELS)
    assert 45 not in np.concatenate(hold_out_images(with_others_left_out, 0.2, 3, 2))


def test_every_image_is_held_out_equally_often():
    counts = sum(np.bincount(hold_out_images(LABELS, 0.25, seed, 1)[1], minlength=46) for seed in range(200))
    assert counts[6:].min() > 25  # 50 expected, standard deviation 6.1
    assert counts[6:].max() < 75


def test_nothing_is_held_out_at_zero_and_nonsense_is_refused():
    assert [len(part) for part in hold_out_images(LABELS, 0, 0, 2)] == [46, 0, 0]
    for share in (1, -0.1, "0.1"):
        with pytest.raises(ValueError, match="fraction of held-out images is"):
            hold_out_images(LABELS, share, 0, 1)
