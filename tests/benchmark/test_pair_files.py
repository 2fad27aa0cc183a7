"""Pair sets from .bin files and folders: the right images in the right folds, and refusals that say what to do."""

import pickle

import cv2
import numpy as np
import pytest

from facelab.benchmark.pair_files import FacePairs, contiguous_folds, fit, linked_images, read_bin, read_folder


def picture(number, size=112, width=None):
    """A plain colour that tells its number in red, and has more blue than green."""
    return np.full((size, width or size, 3), (10 * number, 40, 90), dtype=np.uint8)


def png(image):
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def write_bin(path, images, labels):
    path.write_bytes(pickle.dumps((images, labels), 4))
    return path


def write_folder(root, text, images):
    for name, number, suffix in images:
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / f"{name}_{number:04d}{suffix}").write_bytes(png(picture(number)))
    (root / "pairs.txt").write_text(text)
    return root, root / "pairs.txt"


def test_bin_gives_interleaved_pairs_with_each_image_once_and_in_rgb(tmp_path):
    a, b, c = (png(picture(n)) for n in (1, 2, 3))
    images = [a, b, a, c, np.frombuffer(b, np.uint8), b, c, a]
    made = read_bin(write_bin(tmp_path / "x.bin", images, [True, False, np.bool_(True), 0]), "x", 2, 112)
    assert len(made) == 3
    assert made.pairs.tolist() == [[0, 1], [0, 2], [1, 1], [2, 0]]
    assert made.same.tolist() == [True, False, True, False]
    assert made.fold.tolist() == [0, 0, 1, 1]
    assert made.folds == 2
    for i in range(3):
        np.testing.assert_array_equal(made.load(i), picture(i + 1))


def test_the_digest_tells_sets_apart_that_have_the_same_pattern_of_labels(tmp_path):
    a, b, c, d = (png(picture(n)) for n in (1, 2, 3, 4))
    one = read_bin(write_bin(tmp_path / "1.bin", [a, b, c, d], [True, False]), "x", 2, 112)
    again = read_bin(write_bin(tmp_path / "2.bin", [a, np.frombuffer(b, np.uint8), c, d], [1, 0]), "y", 2, 112)
    other = read_bin(write_bin(tmp_path / "3.bin", [a, b, d, c], [True, False]), "x", 2, 112)
    assert one.digest == again.digest != other.digest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (([b"x"] * 3, [True, False]), "3 images for 2 pairs"),
        (([b"x"] * 4, [True, False], []), "holds no"),
        (b"text", "holds no"),
        (([b"x"] * 4, None), "no list of"),
        (([b"x", b"y"] * 2, [True, 2]), "label 1 is neither"),
        (([b"x", True] * 2, [True, False]), "image 1 is not encoded"),
        (([b"x", np.zeros((112, 112, 3), np.uint8)] * 2, [True, False]), "image 1 is not encoded"),
        (([b"x", b"y"] * 2, [True, True]), "2 genuine of 2 pairs"),
        (([], []), "0 genuine of 0"),
    ],
)
def test_bin_with_other_contents(tmp_path, content, message):
    path = tmp_path / "x.bin"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_bin(path, "x", 2, 112)


def test_a_damaged_image_is_named_when_it_is_loaded(tmp_path):
    images = [png(picture(1)), b"not a JPEG", png(picture(2, 100, 90)), b""]
    made = read_bin(write_bin(tmp_path / "x.bin", images, [True, False]), "x", 2, 112)
    with pytest.raises(ValueError, match=r"x\.bin, image 1: is not a readable image"):
        made.load(1)
    with pytest.raises(ValueError, match=r"x\.bin, image 2: is 100×90 pixels.*facelab\.prepare"):
        made.load(2)
    with pytest.raises(ValueError, match="image 3: is not a readable"):
        made.load(3)


@pytest.mark.parametrize("size", [56, 112, 250])
def test_square_images_are_resized(size):
    made = fit(picture(7, size), 112, "x")
    np.testing.assert_array_equal(made, picture(7, 112))


def test_contiguous_folds_put_the_longer_ones_first():
    assert contiguous_folds(7, 3).tolist() == [0, 0, 0, 1, 1, 2, 2]


VIEW2 = "2\t2\nA\t1\t2\nA\t1\t3\nA\t1\tB\t1\nA\t2\tC C\t1\nB\t1\t2\nB\t2\t1\nB\t1\tC C\t1\nC C\t1\tA\t1\n"
VIEW1 = "2\nA 1 2\nB 1 2\nA 1 B 1\nA 3 C 1\n"
FACES = [("A", 1, ".jpg"), ("A", 2, ".png"), ("A", 3, ".jpeg"), ("B", 1, ".jpg"), ("B", 2, ".jpg"), ("C C", 1, ".jpg")]


def test_folder_with_folds(tmp_path):
    made = read_folder(*write_folder(tmp_path, VIEW2, FACES), "lfw", 2, 112)
    assert len(made) == 6
    assert made.pairs.tolist() == [[0, 1], [0, 2], [0, 3], [1, 4], [3, 5], [5, 3], [3, 4], [4, 0]]
    assert made.same.tolist() == [True, True, False, False] * 2
    assert made.fold.tolist() == [0] * 4 + [1] * 4
    np.testing.assert_array_equal(made.load(2), picture(3))  # A_0003


def test_view_1_pairs_are_dealt_to_folds_of_both_kinds(tmp_path):
    text = VIEW1.replace("C 1", "C\t1").replace(" ", "\t")
    made = read_folder(*write_folder(tmp_path, text, [*FACES, ("C", 1, ".png")]), "dev", 2, 112)
    assert made.same.tolist() == [True, True, False, False]
    assert made.fold.tolist() == [0, 1, 0, 1]


def test_people_without_a_folder_are_all_named_at_once(tmp_path):
    pairs = "".join(f"P{i}\t1\t2\n" for i in range(14)) + "".join(f"P{i}\t1\tA\t1\n" for i in range(14))
    root, listed = write_folder(tmp_path, f"14\n{pairs}", [("A", 1, ".jpg"), ("P3", 1, ".jpg"), ("P3", 2, ".jpg")])
    with pytest.raises(FileNotFoundError, match=r"13 of the 15 people that pairs\.txt names have no folder") as refusal:
        read_folder(root, listed, "x", 2, 112)
    message = str(refusal.value)
    assert "\n" not in message
    assert message.split("there: ")[1].split(";")[0].split(", ") == sorted(f"P{i}" for i in range(14) if i != 3)


def test_the_wrong_folder_is_not_told_name_by_name(tmp_path):
    pairs = "".join(f"P{i}\t1\t2\n" for i in range(12)) + "".join(f"P{i}\t1\tP0\t1\n" for i in range(12))
    root, listed = write_folder(tmp_path, f"12\n{pairs}", [("A", 1, ".jpg")])
    with pytest.raises(FileNotFoundError, match=r"a folder for none of the 12 people .*\(P0, P1, P10 …\); check"):
        read_folder(root, listed, "x", 2, 112)


def test_all_missing_images_are_counted_and_ten_are_named(tmp_path):
    for i in range(12):
        (tmp_path / f"P{i}").mkdir()
    pairs = "".join(f"P{i}\t1\t2\n" for i in range(12)) + "".join(f"P{i}\t1\tA\t1\n" for i in range(12))
    with pytest.raises(FileNotFoundError, match=r"24 images .*P0/P0_0001, P0/P0_0002.*P4/P4_0002, …") as refusal:
        read_folder(*write_folder(tmp_path, f"12\n{pairs}", [("A", 1, ".jpg")]), "x", 2, 112)
    assert "P5" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first line"),
        ("A\t1\t2\n", "first line"),
        ("0\t300\n", "first line"),
        (VIEW2.replace("2\t2\n", "4\t1\n", 1), "set folds=4"),
        (VIEW2.replace("A\t1\t3\n", ""), "promises 2 × 2 genuine.* 3 and 4"),
        (VIEW2.replace("A\t1\t3\n", "A\t1\tx\n"), "pair 2: 'A.*is neither"),
        (VIEW2.replace("A\t1\t3\n", "A\t1\t3\t4\t5\n"), "pair 2: .*is neither"),
        ("1\nA\t1\tB\t1\nA\t1\t2\n", "in this order"),
    ],
)
def test_pairs_files_that_cannot_be_read(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_folder(*write_folder(tmp_path, text, FACES), "x", 2, 112)


def test_people_are_told_by_names_and_without_them_by_genuine_pairs(tmp_path):
    folder = write_folder(
        tmp_path, "2\t1\nAnna\t1\t2\nAnna\t1\tBo\t1\nCy\t1\t2\nCy\t1\tBo\t1\n",
        [("Anna", 1, ".png"), ("Anna", 2, ".png"), ("Bo", 1, ".png"), ("Cy", 1, ".png"), ("Cy", 2, ".png")],
    )  # fmt: skip
    made = read_folder(*folder, "set", 2, 112)
    assert made.people.tolist() == [[0, 0], [0, 1], [2, 2], [2, 1]]
    assert made.people_from == "names"
    images = [png(picture(number)) for number in (1, 2, 2, 3, 4, 5, 1, 4, 6, 4)]  # 1–2–3 and 4–5 are joined, 6 is not
    made = read_bin(write_bin(tmp_path / "set.bin", images, [True, True, True, False, False]), "set", 5, 112)
    assert made.people.tolist() == [[0, 0], [0, 0], [1, 1], [0, 1], [2, 1]]
    assert made.people_from == "linked images"


def test_linked_images_are_connected_components():
    rng = np.random.default_rng(0)
    for images, count in ((30, 10), (30, 25), (200, 150)):
        genuine = rng.integers(images, size=(count, 2))
        found, groups = linked_images(genuine, images), {i: {i} for i in range(images)}
        for a, b in genuine:  # one after the other
            both = groups[a] | groups[b]
            groups.update(dict.fromkeys(both, both))
        for i in range(images):
            assert set(np.flatnonzero(found == found[i])) == groups[i]
        assert sorted(np.unique(found)) == list(range(found.max() + 1))


def test_pairs_of_labelled_faces_hold_only_the_images_that_they_use():
    labels = np.repeat(np.arange(12), 9)
    made = FacePairs(labels, lambda i, out=None: picture(i % 25, 64)).draw("heldout", 24, 2, 5, 112)
    assert len(made.pairs) == 24
    assert len(made) == len(np.unique(made.pairs)) <= 48
    assert made.name == "heldout"
    seen = {int(made.load(i)[0, 0, 0]) for i in range(len(made))}
    assert len(seen) > 1
    assert made.load(0).shape == (112, 112, 3)
    assert made.digest == FacePairs(labels, None).draw("x", 24, 2, 5, 112).digest
    assert made.digest != FacePairs(labels, None).draw("x", 24, 2, 6, 112).digest


@pytest.mark.data
class TestLfw:
    def test_view_2(self, real_data):
        lfw = real_data / "lfw"
        made = read_folder(lfw / "images", lfw / "pairs.txt", "lfw", 10, 112)
        assert len(made) == 7701
        assert len(made.pairs) == 6000
        for k in range(10):
            assert made.same[made.fold == k].tolist() == [True] * 300 + [False] * 300
        image = made.load(0)
        assert image.shape == (112, 112, 3)
        assert image[..., 0].mean() > image[..., 2].mean()  # skin is redder than it is blue: RGB, not BGR

    @pytest.mark.parametrize(("file", "count"), [("pairsDevTrain.txt", 2200), ("pairsDevTest.txt", 1000)])
    def test_view_1(self, real_data, file, count):
        lfw = real_data / "lfw"
        made = read_folder(lfw / "images", lfw / file, "dev", 10, 112)
        assert len(made.pairs) == count
        assert made.same.sum() == count // 2
        assert np.bincount(made.fold[made.same]).tolist() == [count // 20] * 10
        assert np.bincount(made.fold[~made.same]).tolist() == [count // 20] * 10
