"""The door: folders without a key, a file or the terminal, and refusals in one line."""

import sys

import pytest
from fake_runs import draw_pairs, make_sweep

from facelab.compare.__main__ import main, quoted
from facelab.door import with_words


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return make_sweep(tmp_path_factory.mktemp("door"), {"arcface": 0.5, "softmax": 0.3}, (1, 2), sets=[draw_pairs()])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["runs/losses", "runs/other"], ["folders=['runs/losses','runs/other']"]),
        (["runs/losses", "write=html", "--cfg", "job"], ["folders=['runs/losses']", "write=html", "--cfg", "job"]),
        (["runs/x/loss=a,seed=1", "out=a.tex"], ["folders=['runs/x/loss=a,seed=1']", "out=a.tex"]),
        (
            ["it's", "logger=wandb", "logger.mode=offline"],
            [r"folders=['it\'s']", "logger=wandb", "logger.mode=offline"],
        ),
        (["runs/a", "baseline=loss=x, loss.m=1"], ["folders=['runs/a']", "baseline='loss=x, loss.m=1'"]),
        (["baseline=null", "baseline='x'", "wrte=html"], ["baseline=null", "baseline='x'", "wrte=html"]),
        (["--help"], ["--help"]),
        ([], []),
    ],
)
def test_folders_need_no_key(words, expected):
    assert with_words(list(map(quoted, words)), "folders") == expected


def test_a_folder_may_be_called_like_a_choice(tmp_path, monkeypatch):
    (tmp_path / "loss=cosface,seed=2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert with_words(["loss=cosface,seed=2"], "folders") == ["folders=['loss=cosface,seed=2']"]


def opened(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["facelab.compare", *map(str, words)])
    main()
    return capsys.readouterr().out


def test_it_prints_and_it_writes(sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    out = opened(monkeypatch, capsys, sweep, "replicates=100", "baseline=loss=softmax")
    assert "differences to loss=softmax" in out
    assert "arcface" in out
    assert list(tmp_path.iterdir()) == [], "Hydra made a folder"
    assert (
        opened(monkeypatch, capsys, sweep, "replicates=0", "write=latex", "out=papers/").strip() == "papers/compare.tex"
    )
    assert (tmp_path / "papers" / "compare.tex").read_text().count(r"\toprule") == 3


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "nothing to compare"),
        (["none"], "none: no such folder"),
        (["SWEEP", "write=pdf"], "write=pdf: choose csv"),
        (["SWEEP", "replicates=many"], "replicates is 'many': give a value of type int"),
        (["SWEEP", "wrte=html"], "did you mean write"),
        (["SWEEP", "level=2"], "level=2"),
    ],
)
def test_wrong_words_get_one_line(sweep, words, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["facelab.compare", *(str(sweep) if word == "SWEEP" else word for word in words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert line in error
    assert len(error.strip().splitlines()) == 1
