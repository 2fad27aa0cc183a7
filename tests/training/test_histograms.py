"""Histograms of angles and lengths: every image counted once, in its bin, and exactly so after any interruption."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from facelab.training import histograms
from facelab.training.histograms import EDGES, STRETCHES, Histograms

BATCH = 12


def batches(steps, seed=0):
    """(cosine, norm) of each step, float32, with values at and beyond all ends."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(steps):
        cosine = torch.rand(BATCH, generator=generator) * 2.02 - 1.01
        norm = torch.randn(BATCH, generator=generator).mul(2).add(2).exp()
        cosine[:2], norm[:3] = torch.tensor([1.0, -1.0]), torch.tensor([0.0, 1e9, 2.0**-5])
        found.append((cosine, norm))
    return found


def fed(counted, rows, first=0, parts=1):
    for step, (cosine, norm) in enumerate(rows, start=first):
        for c, n in zip(cosine.tensor_split(parts), norm.tensor_split(parts), strict=True):
            counted.add({"cosine": c, "norm": n, "right": c > 0}, step)
    return counted


def read(path):
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


@settings(max_examples=25, deadline=None)
@given(steps=st.integers(1, 130), parts=st.integers(1, 5))
def test_every_image_is_counted_once_in_its_bin_and_stretch(tmp_path_factory, steps, parts):
    path = tmp_path_factory.mktemp("counted") / "histograms.npz"
    rows = batches(steps, seed=steps)
    counted = fed(Histograms(steps, {}), rows, parts=parts)
    counted.write(path, steps, BATCH)
    found = read(path)
    images = found["images"]
    assert (images[0], images[-1], len(images)) == (0, BATCH * steps, min(STRETCHES, steps) + 1)
    assert np.ptp(np.diff(images)) <= BATCH  # equal but for the step that does not divide
    for kind in ("angle", "norm"):
        np.testing.assert_array_equal(found[kind].sum(axis=1), np.diff(images))
    values = {
        "angle": np.degrees(np.arccos(np.clip(torch.cat([c for c, _ in rows]).double().numpy(), -1, 1))),
        "norm": torch.cat([n for _, n in rows]).double().numpy(),
    }
    for kind, all_of_it in values.items():
        for low, high, counts in zip(images, images[1:], found[kind], strict=False):
            of_stretch = np.digitize(all_of_it[low:high], EDGES[kind][1:-1])
            np.testing.assert_array_equal(counts, np.bincount(of_stretch, minlength=len(counts)))
            np.testing.assert_array_equal(found[f"{kind}_edges"], EDGES[kind])


def test_lengths_without_a_bin_of_their_own_fall_into_the_outer_ones(tmp_path):
    counted = Histograms(1, {})
    counted.add({"norm": torch.tensor([0.0, 1e-9, 2.0**12, 1e30, math.inf])}, 0)
    counted.write(tmp_path / "h.npz", 1, 5)
    assert (read(tmp_path / "h.npz")["norm"][0, [0, -1]] == [2, 3]).all()


def test_medians_are_those_of_the_window():
    rows = batches(30, seed=1)
    counted = Histograms(30, {})
    for first, last in ((0, 7), (7, 30)):
        fed(counted, rows[first:last], first)
        medians = counted.take_medians()
        cosine, norm = (torch.cat(part).double() for part in zip(*rows[first:last], strict=True))
        angle = float(torch.rad2deg(cosine.clamp(-1, 1).acos()).quantile(0.5))
        assert medians["angle"] == pytest.approx(angle, abs=2.5)  # 84 values are that far apart
        assert medians["norm"] == pytest.approx(float(norm.quantile(0.5)), rel=0.1)
    assert counted.take_medians() == {}  # nothing since


def test_medians_are_as_exact_as_the_bins():
    generator = torch.Generator().manual_seed(2)
    cosine, norm = torch.rand(20_000, generator=generator) * 0.8, torch.rand(20_000, generator=generator) * 9 + 3
    counted = Histograms(5, {})
    counted.add({"cosine": cosine, "norm": norm}, 4)
    medians = counted.take_medians()
    assert medians["angle"] == pytest.approx(float(torch.rad2deg(cosine.acos()).median()), abs=0.1)
    assert medians["norm"] == pytest.approx(float(norm.median()), rel=0.005)


@pytest.mark.parametrize("stop", [0, 1, 24, 25, 59])
def test_a_resumed_run_counts_as_an_undisturbed_one(tmp_path, stop):
    rows = batches(60)
    alone = fed(Histograms(60, {}), rows[:25])
    taken = [alone.take_medians()]
    fed(alone, rows[25:], 25)

    before = fed(Histograms(60, {}), rows[: min(stop, 25)])
    if stop >= 25:
        assert before.take_medians() == taken[0]
        fed(before, rows[25:stop], 25)
    resumed = Histograms(60, json.loads(json.dumps(before.pack())))
    fed(before, rows[stop : stop + 3], stop)  # steps that the kill undoes
    if stop < 25:
        fed(resumed, rows[stop:25], stop)
        assert resumed.take_medians() == taken[0]
    fed(resumed, rows[max(stop, 25) :], max(stop, 25))

    assert resumed.pack() == alone.pack()
    for name, counted in (("alone", alone), ("resumed", resumed)):
        counted.write(tmp_path / f"{name}.npz", 60, BATCH)
    assert (tmp_path / "alone.npz").read_bytes() == (tmp_path / "resumed.npz").read_bytes()
    assert alone.take_medians() == resumed.take_medians() != {}


def test_the_file_has_whole_stretches_alone(tmp_path):
    counted = fed(Histograms(90, {}), batches(49))
    assert [step for step in range(91) if counted.ends_at(step)] == counted.bounds[1:]
    counted.write(tmp_path / "h.npz", 49, BATCH)
    found = read(tmp_path / "h.npz")
    assert found["images"][-1] == BATCH * max(bound for bound in counted.bounds if bound <= 49) < BATCH * 49
    assert found["angle"].sum() == found["images"][-1]


def test_what_the_loss_does_not_tell_is_not_written(tmp_path):
    counted = Histograms(4, {})
    counted.add({}, 0)
    counted.write(tmp_path / "h.npz", 4, BATCH)
    assert list(tmp_path.iterdir()) == []
    assert counted.take_medians() == {}
    counted.add({"norm": torch.ones(BATCH)}, 1)
    counted.write(tmp_path / "h.npz", 4, BATCH)
    assert set(read(tmp_path / "h.npz")) == {"images", "norm", "norm_edges"}
    assert list(counted.take_medians()) == ["norm"]


def test_values_that_are_no_numbers_do_not_stop_it():
    """That is for whoever reads the loss to say."""
    counted = Histograms(1, {})
    counted.add({"cosine": torch.tensor([math.nan, 0.5]), "norm": torch.tensor([math.nan, 1.0])}, 0)
    assert counted.take_medians().keys() == {"angle", "norm"}


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(histograms.np, "savez_compressed", full)
    counted = fed(Histograms(2, {}), batches(2))
    with pytest.raises(OSError, match=r"h\.npz cannot be written \(No space left on device\): .*free some space"):
        counted.write(tmp_path / "h.npz", 2, BATCH)
    assert list(tmp_path.iterdir()) == []
