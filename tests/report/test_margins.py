"""The picture of the margins: drawn from the losses as they are configured, and showing what it says."""

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from facelab.report import margins

CONF = Path(__file__).parents[2] / "conf" / "loss"


@pytest.fixture(scope="module")
def curves():
    return margins.curves(CONF)


def test_every_margin_of_conf_is_drawn_and_no_other_loss(curves):
    names = {name for curve in curves for name in curve.loss.split(", ")}
    assert names >= {"adaface", "adam_softmax", "arcface", "combined", "cosface", "curricularface", "magface"}
    assert names >= {"norm_softmax", "sphereface", "sphereface2"}
    assert not names & {"softmax", "contrastive", "triplet"}


def test_the_curves_are_the_formulas(curves):
    found = {(name, curve.note): curve.target for curve in curves for name in curve.loss.split(", ")}
    theta = np.linspace(0, np.pi, 721)
    inside = theta < 2.5
    np.testing.assert_allclose(found["norm_softmax", ""], np.cos(theta), atol=1e-12)
    np.testing.assert_allclose(found["cosface", ""], np.cos(theta) - 0.35, atol=1e-12)
    for name in ("arcface", "curricularface"):
        np.testing.assert_allclose(found[name, ""][inside], np.cos(theta + 0.5)[inside], atol=1e-12)
    np.testing.assert_allclose(found["magface", "long"][theta < 2.3], np.cos(theta + 0.8)[theta < 2.3], atol=1e-12)
    np.testing.assert_allclose(found["adaface", "average"][20:-20], (np.cos(theta) - 0.4)[20:-20], atol=1e-12)
    np.testing.assert_allclose(found["sphereface", ""][-1], (-7 - 5) / 6, atol=1e-4)  # λ has fallen to 5
    assert not {curve.softmax for curve in curves if curve.loss == "sphereface2"} & {True}


def test_the_boundary_of_two_classes():
    theta = np.linspace(0, np.pi, 721)
    np.testing.assert_allclose(margins.boundary(np.cos(theta)), theta, atol=1e-7)
    other = margins.boundary(np.cos(theta) - 0.35)
    assert np.isnan(other[-1])
    assert (other[:400] > theta[:400]).all()


def test_the_picture(tmp_path, monkeypatch, capsys):
    state = torch.get_rng_state()
    monkeypatch.setattr(sys, "argv", ["margins", f"out={tmp_path}/picture.png"])
    margins.main()
    assert torch.equal(torch.get_rng_state(), state)
    assert str(tmp_path / "picture.png") in capsys.readouterr().out
    picture = cv2.imread(str(tmp_path / "picture.png"))
    assert picture.shape == (1066, 1820, 3)
    for part in (picture[:580, :840], picture[600:, :840], picture[130:, 880:]):  # logits, drops, boundaries
        assert (part.min(axis=2) < 128).mean() > 0.01  # ink


@pytest.mark.parametrize("out", ["picture.jpg", "nowhere/picture.png"])
def test_a_wrong_place_is_refused(out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["margins", f"out={out}"])
    with pytest.raises(SystemExit, match=r"out=.*give a file that ends in \.png"):
        margins.main()
