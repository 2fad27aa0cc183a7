import threading
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from facelab.data import synthetic
from facelab.data.synthetic import SyntheticFaces, render

DEFAULT = {"identities": 4, "images_per_identity": 3, "size": 48, "long_tail": 1, "nuisance": 1, "seed": 5}


def faces(**changes):
    return SyntheticFaces(**{**DEFAULT, **changes})


@pytest.fixture(autouse=True)
def nothing_is_drawn_yet():
    synthetic._drawings.cache_clear()


def everything(source):
    return np.stack([source.load(i) for i in range(len(source))])


def test_is_a_source():
    source = faces(size=112)
    assert len(source) == 12
    assert source.num_classes == 4
    assert source.size == 112
    assert len(source.identity_names) == 4
    assert source.labels.dtype == np.int64
    np.testing.assert_array_equal(source.labels, np.repeat(np.arange(4), 3))
    image = source.load(7)
    assert image.shape == (112, 112, 3)
    assert image.dtype == np.uint8
    assert image.std() > 20  # a picture, not a blank


def test_same_bytes_from_a_fresh_object_in_another_order_and_in_threads():
    first = everything(faces())
    synthetic._drawings.cache_clear()
    again = faces()
    for i in reversed(range(len(again))):
        np.testing.assert_array_equal(again.load(i), first[i])
    synthetic._drawings.cache_clear()
    threaded = faces()
    start = threading.Barrier(4)

    def work(_):
        start.wait()
        return everything(threaded)

    with ThreadPoolExecutor(4) as pool:
        for images in pool.map(work, range(4)):
            np.testing.assert_array_equal(images, first)


def test_the_next_job_of_a_sweep_draws_nothing_anew(monkeypatch):
    first, other = everything(faces()), everything(faces(seed=6))
    monkeypatch.setattr(synthetic, "render", None)
    np.testing.assert_array_equal(everything(faces()), first)
    np.testing.assert_array_equal(everything(faces(seed=6)), other)
    with pytest.raises(TypeError):
        faces(seed=7).load(0)


def test_a_larger_set_contains_the_smaller_one():
    small, large = everything(faces()), faces(identities=6, images_per_identity=5)
    kept = np.concatenate([np.arange(3) + 5 * identity for identity in range(4)])
    np.testing.assert_array_equal(np.stack([large.load(i) for i in kept]), small)


def test_identities_samples_and_seeds_differ():
    images = everything(faces())
    images = np.concatenate([images, everything(faces(seed=6))])
    assert len({image.tobytes() for image in images}) == len(images)


def test_loading_twice_gives_the_cached_image_and_protects_it():
    source = faces()
    image = source.load(3)
    assert np.shares_memory(image, source.load(3))
    with pytest.raises(ValueError, match="read-only"):
        image[0, 0] = 0


def test_long_tail_counts_fall_geometrically_and_never_below_two():
    source = faces(identities=5, images_per_identity=16, long_tail=16)
    np.testing.assert_array_equal(np.bincount(source.labels), [16, 8, 4, 2, 2])
    np.testing.assert_array_equal(source.load(16), render(5, 1, 0, 48, 1))  # the second person's first image
    assert source.load(len(source) - 1).any()


def test_no_nuisance_is_one_frontal_face_and_nuisance_grows():
    spread = [
        everything(faces(nuisance=nuisance, images_per_identity=6)).reshape(4, 6, -1).std(axis=1).mean()
        for nuisance in (0, 0.3, 1)
    ]
    assert spread[0] == 0
    assert 0 < spread[1] < 0.7 * spread[2]


def test_without_nuisance_pixels_tell_the_identities_apart():
    clean = everything(faces(nuisance=0, images_per_identity=2)).astype(np.float32)
    assert np.abs(clean[0] - clean[2]).mean() > 5


def test_pixels_alone_do_not_verify():
    source = faces(identities=60, images_per_identity=6, size=112)
    with ThreadPoolExecutor(2) as pool:
        images = list(pool.map(source.load, range(len(source))))
    small = np.stack([cv2.resize(image, (28, 28), interpolation=cv2.INTER_AREA) for image in images])
    grey = small.mean(-1, keepdims=True).astype(np.float32)
    for features in (small.astype(np.float32), grey):
        rows = features.reshape(len(images), -1)
        rows -= rows.mean(1, keepdims=True)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        scores = rows @ rows.T
        same = source.labels[:, None] == source.labels[None, :]
        genuine = scores[same & ~np.eye(len(same), dtype=bool)]
        impostor = scores[~same]
        threshold = np.linspace(-1, 1, 400)[:, None]
        accuracy = 0.5 * ((genuine >= threshold).mean(1) + (impostor < threshold).mean(1))
        assert accuracy.max() < 0.70


@pytest.mark.parametrize("size", [32, 64, 300])
def test_the_same_face_at_every_size(size):
    image = render(5, 1, 0, size, 0)
    assert image.shape == (size, size, 3)
    reference = cv2.resize(render(5, 1, 0, 112, 0), (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    small = cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    assert np.corrcoef(reference.ravel(), small.ravel())[0, 1] > 0.97


def test_strong_nuisance_and_many_seeds_draw_without_complaint():
    with np.errstate(all="raise", under="ignore"):
        for identity in range(60):
            assert render(2**63 + 11, identity, 0, 40, 3).std() > 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("identities", 1),
        ("images_per_identity", 1),
        ("size", 31),
        ("long_tail", 0.5),
        ("nuisance", -0.1),
        ("nuisance", float("nan")),
        ("seed", -1),
    ],
)
def test_bad_arguments_are_named(name, value):
    with pytest.raises(ValueError, match=f"SyntheticFaces: {name} is {value}, but must be at least"):
        faces(**{name: value})
