"""The command of the export as a user types it, and what a notebook opens afterwards."""

import json

import numpy as np
import pytest
from test_formats import FEW, unit, write_checkpoint

import facelab
from facelab.export import __main__ as door


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    write_checkpoint(folder / "best.ckpt")
    return folder


def test_a_model_is_exported_on_the_command_line_and_opened_in_a_notebook(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    words = ["checkpoint=best.ckpt", "format=onnx", "job=first", *FEW]
    monkeypatch.setattr("sys.argv", ["facelab.export", *words])
    door.main()
    told = capsys.readouterr().out
    assert "runs/exports/first/model.onnx, which takes bgr (x − 0)/255" in told
    assert len(told.splitlines()) == 4, "what the writer has to say of its nodes is for nobody here"
    (file,) = place.glob("runs/**/*.onnx")
    assert json.loads(file.with_name("export.json").read_text())["parity"]["max"] < 1e-7
    faces = np.random.default_rng(1).integers(0, 256, (5, 48, 48, 3), dtype=np.uint8)
    model, original = (facelab.load_model(one, mirror=False) for one in (file, "best.ckpt"))
    embeddings = model.embed(list(faces))
    assert embeddings.shape == (5, 16)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(embeddings, original.embed(list(faces)), atol=2e-6)
    # With the mirrored image, what a file gives is added: of this one, vectors of length 1.
    mirrored = model.embed([face[:, ::-1] for face in faces])
    np.testing.assert_allclose(facelab.load_model(file).embed(list(faces)), unit(embeddings + mirrored), atol=2e-6)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["checkpoint=none.ckpt"], "none.ckpt"),
        (["checkpoint=best.ckpt", "format=onxx"], "onxx"),
        (["checkpoint=best.ckpt", "format=onnx", "precision=int8"], "calibration"),
    ],
)
def test_a_wrong_word_is_one_line_and_leaves_no_model(place, tmp_path, monkeypatch, capsys, words, told):
    monkeypatch.chdir(tmp_path)
    words = [word.replace("best.ckpt", str(place / "best.ckpt")) for word in words]
    monkeypatch.setattr("sys.argv", ["facelab.export", "job=wrong", *words, *FEW])
    with pytest.raises(SystemExit) as caught:
        door.main()
    assert caught.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("facelab: ")
    assert told in said
    assert said.count("\n") == 1
    assert [file.name for file in tmp_path.rglob("model*")] == []
