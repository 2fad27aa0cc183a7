"""DALI's batches are TrainLoader's: the same images in the same order, decoded alike."""

import gc
import io
import os
import time
from functools import partial

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from test_recordio import frame, payload, write
from test_sampling import adaptive, pk

from facelab.data import dali_loader
from facelab.data.dali_loader import TOLERANCE, DaliLoader
from facelab.data.folder import FolderFaces
from facelab.data.plan import Plan
from facelab.data.recordio import RecordIOFaces
from facelab.data.synthetic import render
from facelab.data.torch_loader import TrainLoader
from facelab.pixels import decode

pytest.importorskip("nvidia.dali", reason="needs DALI: pip install 'facelab[dali]' (Linux)")

SIZE = 48
PEOPLE, IMAGES = 6, 8


def written(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def rotated(image):
    exif = Image.Exif()
    exif[0x0112] = 6
    return written(image, "JPEG", exif=exif)


def sixteen_bits(image):
    return cv2.imencode(".png", (np.asarray(image).astype(np.uint16) << 8)[..., ::-1] + 37)[1].tobytes()


# What DALI decodes, and what it is not given: suffix and how it is written.
DALIS = {
    "usual": (".jpg", lambda image: written(image, "JPEG")),
    "444": (".jpg", lambda image: written(image, "JPEG", subsampling=0, quality=95)),
    "422": (".jpg", lambda image: written(image, "JPEG", subsampling=1, quality=30)),
    "progressive": (".jpeg", lambda image: written(image, "JPEG", progressive=True)),
    "grey": (".jpg", lambda image: written(image.convert("L"), "JPEG")),
    "restarts": (
        ".jpg",
        lambda image: cv2.imencode(".jpg", np.array(image)[..., ::-1], [cv2.IMWRITE_JPEG_RST_INTERVAL, 2])[1].tobytes(),
    ),
}
OURS = {
    "cmyk": (".jpg", lambda image: written(image.convert("CMYK"), "JPEG")),
    "exif": (".jpg", rotated),
    "png": (".png", lambda image: written(image, "PNG")),
    "transparent": (".png", lambda image: written(image.convert("RGBA"), "PNG")),
    "16-bit": (".png", sixteen_bits),
    "bmp": (".bmp", lambda image: written(image, "BMP")),
    "webp": (".webp", lambda image: written(image, "WEBP")),
}
KINDS = {**DALIS, **OURS}
FACES = [Image.fromarray(render(0, n // IMAGES, n % IMAGES, SIZE, 1.0)) for n in range(PEOPLE * IMAGES)]


def kind_of(number):
    """Every second image is the usual JPEG."""
    return "usual" if number % 2 else list(KINDS)[number // 2 % len(KINDS)]


def pack(root, change=lambda number, encoded: encoded):
    """A raw pack of InsightFace's: images, and records of the identities behind them."""
    count = len(FACES)
    files = [change(number, KINDS[kind_of(number)][1](face)) for number, face in enumerate(FACES)]
    contents = [payload([count + 1.0, count + 1.0 + PEOPLE])]
    contents += [payload(float(number // IMAGES), file) for number, file in enumerate(files)]
    contents += [payload([person * IMAGES + 1.0, (person + 1) * IMAGES + 1.0]) for person in range(PEOPLE)]
    return write(root, [frame(content) for content in contents], described=f"{PEOPLE},{SIZE},{SIZE}")


def folder(root):
    """Some images have another size."""
    for number, face in enumerate(FACES):
        suffix, make = KINDS[kind_of(number)]
        place = root / f"p{number // IMAGES}"
        place.mkdir(parents=True, exist_ok=True)
        larger = face.resize((SIZE + 15, SIZE + 15)) if number % 7 == 3 else face
        (place / f"{number:03}{suffix}").write_bytes(make(larger))
    return root


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("faces")
    return {"rec": RecordIOFaces(pack(root / "pack"), SIZE), "folder": FolderFaces(folder(root / "folder"), SIZE)}


SUBSET = np.arange(3, 45)


def make(made, source, **changes):
    known = {"source": source, "subset": SUBSET, "labels": SUBSET * 10, "plan": Plan(42, 12, 3), "seed": 7, "draws": 3}
    known |= {"start": 0, "stop": 7, "rank": 0, "world": 1, "threads": 2, "prefetch": 2, "pin": False}
    return made(**{**known, **changes})


dali, threads = partial(make, DaliLoader), partial(make, TrainLoader)


def alike(batch, expected):
    """Labels, draws and indices equal; pixels within the tolerance, where they are DALI's."""
    for ours, theirs in zip(batch[1:], expected[1:], strict=True):
        assert torch.equal(ours, theirs)
        assert ours.dtype == theirs.dtype
    assert batch.images.shape == expected.images.shape
    assert batch.images.dtype == torch.uint8
    apart = (batch.images.int() - expected.images.int()).abs().flatten(1).max(1).values
    assert apart.max() <= TOLERANCE
    ours = torch.tensor([kind_of(index) in OURS for index in batch.indices.tolist()])
    assert apart[ours].sum() == 0
    return True


@pytest.mark.parametrize("kind", ["rec", "folder"])
def test_all_batches_are_the_thread_loaders(sources, kind):
    loader = dali(sources[kind])
    batches = list(loader)
    assert len(batches) == len(loader) == 7  # more than two epochs of 3 steps
    assert all(alike(*pair) for pair in zip(batches, threads(sources[kind]), strict=True))
    seen = {kind_of(index) for batch in batches for index in batch.indices.tolist()}
    assert seen == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_what_dali_is_given(kind):
    encoded = np.frombuffer(KINDS[kind][1](FACES[0]), np.uint8)
    assert decode(encoded).shape == (SIZE, SIZE, 3)
    assert dali_loader._decodes_alike(encoded, SIZE) == (kind in DALIS)
    assert not dali_loader._decodes_alike(encoded, SIZE + 1)


def test_dali_decodes_what_it_is_given(sources, monkeypatch):
    """Were every image decoded on our side, all else here would hold as well."""
    ours = []
    plain = dali_loader._decode
    monkeypatch.setattr(
        dali_loader, "_decode", lambda source, indices, out: ours.append(indices) or plain(source, indices, out)
    )
    batches = list(dali(sources["rec"], stop=3))
    expected = [index for batch in batches for index in batch.indices.tolist() if kind_of(index) in OURS]
    assert sorted(index for indices in ours for index in indices) == sorted(expected)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_shards_are_equal_and_cover_every_image_once(sources, world):
    ranks = [list(dali(sources["rec"], rank=rank, world=world)) for rank in range(world)]
    for batch, *slices in zip(threads(sources["rec"]), *ranks, strict=True):
        assert {len(part.labels) for part in slices} == {12 // world}
        assert alike(type(batch)(*(torch.cat(tensors) for tensors in zip(*slices, strict=True))), batch)
    for epoch in range(2):
        steps = range(3 * epoch, 3 * epoch + 3)
        seen = [index for rank in ranks for step in steps for index in rank[step].indices.tolist()]
        assert len(set(seen)) == len(seen) == 36, "an epoch without the rest of 6, no image twice"


@pytest.mark.parametrize("start", [1, 2, 3, 7])
def test_position_is_absolute(sources, start):
    batches = list(dali(sources["rec"], start=start))
    assert len(batches) == 7 - start
    assert all(alike(*pair) for pair in zip(batches, list(threads(sources["rec"]))[start:], strict=True))


@pytest.mark.parametrize(("workers", "prefetch"), [(1, 1), (3, 9)])
def test_threads_and_prefetch_change_nothing(sources, workers, prefetch):
    loader = dali(sources["folder"], threads=workers, prefetch=prefetch)
    usual = list(dali(sources["folder"]))
    for _ in range(2):  # a loader can be gone through again
        for batch, expected in zip(loader, usual, strict=True):
            assert all(torch.equal(*tensors) for tensors in zip(batch, expected, strict=True))


def test_people_times_images(sources):
    plans = [pk(sources["rec"].labels[SUBSET], 12, 3, images=2) for _ in range(2)]
    pairs = zip(dali(sources["rec"], plan=plans[0]), threads(sources["rec"], plan=plans[1]), strict=True)
    assert all(alike(*pair) for pair in pairs)


@pytest.mark.parametrize("start", [0, 2])
def test_a_plan_that_adapts_is_asked_for_an_epoch_when_the_one_before_is_done(sources, start):
    plans = [adaptive(42, 12, 3) for _ in range(2)]
    loaders = [
        made(sources["rec"], plan=plan, prefetch=4, start=start)
        for made, plan in zip((dali, threads), plans, strict=True)
    ]
    for step, pair in enumerate(zip(*loaders, strict=True), start=start):
        assert alike(*pair)
        for plan in plans:
            assert plan.frozen == step // 3
            plan.learn(step, plan.indices(step), np.arange(12) % 3 > 0, None)
    assert len(set(plans[0].weights.tolist())) > 2


def tasks():
    return len(os.listdir("/proc/self/task"))


def test_threads_end_when_exhausted_closed_or_dropped(sources):
    before = tasks()
    list(dali(sources["rec"]))
    assert gone(before)
    iterator = iter(dali(sources["rec"]))
    assert tasks() <= before, "they start with the first batch that is asked for"
    next(iterator)
    assert tasks() > before + 2
    iterator.close()
    assert gone(before)
    for _ in dali(sources["rec"], prefetch=6):
        break
    gc.collect()
    assert gone(before)


def gone(before):
    deadline = time.monotonic() + 10
    while tasks() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    return tasks() <= before


def test_batches_that_are_kept_stay_as_they_were(sources):
    batches = list(dali(sources["rec"], stop=20, prefetch=1))
    views = [batch.images[3:, 1:] for batch in batches]
    wanted = [batch.images[3:, 1:].clone() for batch in threads(sources["rec"], stop=20)]
    del batches
    gc.collect()
    list(dali(sources["rec"], stop=20))
    for view, image in zip(views, wanted, strict=True):
        assert (view.int() - image.int()).abs().max() <= TOLERANCE


# Damage


def refusal(made, source, **changes):
    """How many batches come, and what is said then."""
    came = []
    with pytest.raises(ValueError, match="image") as caught:
        came.extend(make(made, source, **changes))
    return len(came), str(caught.value)


@pytest.mark.parametrize("damage", ["cut short", "no image", "header", "another size", "png cut short"])
def test_a_damaged_image_is_named_as_by_the_thread_loader(tmp_path, damage):
    bad = next(i for i in Plan(42, 12, 3).indices(4).tolist() if kind_of(i + 3) == "usual") + 3

    def change(number, encoded):
        larger = written(FACES[0].resize((SIZE + 8, SIZE + 8)), "JPEG")
        png = written(FACES[0], "PNG")[:60]
        changed = {"cut short": encoded[: len(encoded) // 2], "no image": b"none at all", "header": encoded[:30]}
        return {**changed, "another size": larger, "png cut short": png}[damage] if number == bad else encoded

    source = RecordIOFaces(pack(tmp_path, change), SIZE)
    first = {"plan": Plan(42, 12, 3), "start": 3, "stop": 6}
    came, said = refusal(DaliLoader, source, prefetch=4, **first)
    assert (came, said) == refusal(TrainLoader, source, prefetch=4, **first)
    assert came == 1, "the batch before it still arrives"
    assert f"image {bad} (identity '{bad // IMAGES}')" in said


def test_a_file_that_has_gone_is_named(tmp_path):
    source = FolderFaces(folder(tmp_path), SIZE)
    bad = int(Plan(42, 12, 3).indices(0)[5]) + 3
    source.path(bad).unlink()
    assert refusal(DaliLoader, source) == refusal(TrainLoader, source)
    assert f"image {bad} " in refusal(DaliLoader, source)[1]


def test_where_dali_fails_on_what_can_be_read_the_way_on_is_told(sources, monkeypatch):
    class Misled(RecordIOFaces):
        def encoded(self, index):
            return np.frombuffer(b"\xff\xd8\xff none", np.uint8) if index == 20 else super().encoded(index)

        def load(self, index, out=None):
            return np.zeros((SIZE, SIZE, 3), np.uint8)

    monkeypatch.setattr(dali_loader, "_decodes_alike", lambda encoded, size: True)
    source = Misled(sources["rec"].root, SIZE)
    with pytest.raises(ValueError, match=r"DALI fails on images that can all be read without it \(.*data.loader=torch"):
        list(dali(source))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"world": 5}, "5 ranks cannot share"),
        ({"threads": 0}, "threads is 0"),
        ({"prefetch": 0}, "prefetch is 0"),
        ({"start": 5, "stop": 4}, "start is 5 and stop 4"),
    ],
)
def test_what_the_thread_loader_refuses_is_refused(sources, changes, message):
    with pytest.raises(ValueError, match=message):
        dali(sources["rec"], **changes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_batch_stays_there(sources):
    for batch, expected in zip(dali(sources["rec"], pin=True), threads(sources["rec"]), strict=True):
        assert batch.images.is_cuda
        assert torch.equal(batch.indices, expected.indices)
        apart = (batch.images.cpu().int() - expected.images.int()).abs()
        assert apart.float().mean() < 1


@pytest.mark.data
def test_celeba(real_data):
    """A raw pack of InsightFace's, identity records and all."""
    source = RecordIOFaces(real_data / "celeba", 112)
    whole = {"subset": np.arange(len(source)), "labels": source.labels, "plan": Plan(len(source), 128, 3), "stop": 8}
    for batch, expected in zip(dali(source, **whole), threads(source, **whole), strict=True):
        assert torch.equal(batch.labels, expected.labels)
        assert (batch.images.int() - expected.images.int()).abs().max() <= TOLERANCE
