"""What was swept makes the rows; what differs besides is named; two runs are never taken for one."""

from pathlib import Path

import pytest

from facelab.compare.results import Cost, Run
from facelab.compare.rows import arrange, job_words, label

NOTHING = Cost(1.0, 1.0, "", 1, 1.0, 1.0)
DEFAULTS = {"loss._target_": "facelab.loss.arcface.ArcFace", "loss.margin": 0.5, "trainer.batch_size": 64}


def run(job, seed=1, **config):
    changed = {key.replace("__", "."): value for key, value in config.items()}
    path = Path("runs") / "x" / job / str(sorted(changed.items()))
    return Run(path, "x", job, seed, True, {**DEFAULTS, "seed": seed, **changed}, {}, {}, {}, NOTHING)


def cosface(job, seed=1, margin=0.4, **more):
    target = {"loss___target_": "facelab.loss.cosface.CosFace"}
    return run(job, seed, loss__margin=margin, **target, **more)


def labels(runs, keys=None):
    return [label(choices) for choices, _ in arrange(runs, keys).rows]


def test_an_option_of_a_group_is_a_row_and_explains_its_own_values():
    runs = [run("defaults"), run("seed=2", 2), cosface("loss=cosface"), cosface("loss=cosface,seed=2", 2)]
    found = arrange(runs, None)
    assert found.keys == ("loss",)
    assert labels(runs) == ["loss=arcface", "loss=cosface"]
    assert [[one.seed for one in members] for _, members in found.rows] == [[1, 2], [1, 2]]
    assert found.unasked == {}


def test_values_are_sorted_by_size_and_groups_stand_before_them():
    runs = [cosface(f"loss=cosface,loss.margin={m}", margin=m) for m in (0.35, 10, 9)] + [
        run("loss.margin=9", loss__margin=9)
    ]
    assert arrange(runs, None).keys == ("loss", "loss.margin")
    assert labels(runs) == [
        "loss=arcface, loss.margin=9",
        *(f"loss=cosface, loss.margin={m}" for m in ("0.35", "9", "10")),
    ]


def test_seeds_alone_are_one_row():
    assert labels([run("defaults"), run("seed=2", 2)]) == ["defaults"]


def test_a_loss_of_pairs_brings_its_sampler_unless_one_loss_came_with_two():
    pk = {"data__sampler___target_": "PK", "data__sampler__images": 4}
    runs = [run("loss=cosface"), run("loss=triplet", **pk)]
    found = arrange(runs, None)
    assert (found.keys, found.unasked) == (("loss",), {})
    found = arrange([*runs, run("loss=cosface", seed=2, **pk)], None)
    assert set(found.keys) == {"loss", "data.sampler._target_", "data.sampler.images"}
    assert len(found.rows) == 3


def test_what_differs_and_was_not_swept_is_named_and_tells_rows_apart():
    runs = [run("defaults"), cosface("loss=cosface", trainer__epochs=7)]
    found = arrange(runs, None)
    assert found.unasked == {"trainer.epochs": [None, 7]}
    assert found.keys == ("loss", "trainer.epochs")
    assert arrange(runs, ["loss"]).keys == ("loss",)
    assert arrange(runs, ["loss"]).unasked == {"trainer.epochs": [None, 7]}


def test_where_and_how_comfortably_it_ran_is_not_asked():
    assert (
        arrange([run("a", data__root="x", trainer__devices=8), run("b", 2, logger__mode="offline")], None).unasked == {}
    )


def test_what_follows_the_seed_is_not_a_choice():
    runs = [run("defaults", 1, data__take__long_tail__seed=1), run("seed=2", 2, data__take__long_tail__seed=2)]
    assert arrange(runs, None).unasked == {}
    assert labels(runs) == ["defaults"]
    other = [run("defaults", 1, data__take__long_tail__seed=3), run("seed=2", 2, data__take__long_tail__seed=4)]
    assert list(arrange(other, None).unasked) == ["data.take.long_tail.seed"]


def test_an_experiment_decides_about_everything():
    runs = [run("experiment=askd_plain"), run("experiment=askd", distill__beta=3)]
    assert labels(runs) == ["experiment=askd", "experiment=askd_plain"]
    assert arrange(runs, None).unasked == {}


def test_two_runs_of_one_row_and_seed_are_refused():
    with pytest.raises(ValueError, match=r"same row and seed \(1\): leave one"):
        arrange([run("one"), run("two")], None)
    with pytest.raises(ValueError, match=r"they differ in trainer\.epochs: name that in keys"):
        arrange([run("one"), run("two", trainer__epochs=7)], ["loss.margin"])


def test_a_key_that_no_run_has_is_refused():
    with pytest.raises(ValueError, match=r"keys has los, which .*give trainer\.epochs"):
        arrange([run("one"), run("two", trainer__epochs=7)], ["los"])


def test_an_option_that_came_with_several_values_is_several_rows():
    runs = [cosface("loss=cosface"), cosface("loss=cosface,seed=2", 2, margin=0.3), run("defaults")]
    found = arrange(runs, None)
    assert list(found.unasked) == ["loss.margin"]
    rows = [("arcface", 0.5), ("cosface", 0.3), ("cosface", 0.4)]
    assert labels(runs) == [f"loss={loss}, loss.margin={margin}" for loss, margin in rows]
    assert list(arrange(runs, ["loss"]).unasked) == ["loss.margin"]
    assert labels(runs, ["loss"]) == ["loss=arcface", "loss=cosface"]


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ("defaults", {}),
        ("a_word_of_my_own", {}),
        ("loss=cosface,seed=2", {"loss": "cosface", "seed": "2"}),
        ("data.sampler=pk,data.x=[56,14],loss.x=a,b", {"data.sampler": "pk", "data.x": "[56,14]", "loss.x": "a,b"}),
        ("loss=cosface,~data.take", {"loss": "cosface", "data.take": "–"}),
        ("loss=cosface," + "trainer.x=" + "1" * 120 + "-0123abcd", {"loss": "cosface"}),
    ],
)  # fmt: skip
def test_words_of_a_jobs_name(job, words):
    assert job_words(run(job)) == words


def test_evaluations_of_other_weights_are_rows():
    last = run("loss=x", checkpoint="runs/a/checkpoints/last.ckpt", ema=None)
    best = run("loss=x", 2, checkpoint="runs/a/checkpoints/best.ckpt", ema=None)
    published = Run(Path("e"), "x", "y", None, True, {"checkpoint": "weights/r50.pt"}, {}, {}, {}, NOTHING)
    assert job_words(last) == {"loss": "x", "checkpoint": "last"}
    assert job_words(best) == {"loss": "x"}
    assert job_words(published) == {"checkpoint": "weights_r50.pt"}
