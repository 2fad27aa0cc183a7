"""A whole training on one to four processes, batch norms synchronised: the same images, losses, weights and result.

And the same of one training whose every stretch was done by another number of them, with all that has a state: AdaFace
by class, groups, a sampler that adapts, averaged weights, running statistics.
"""

import csv
import json
import os
import re
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from killing import compose
from ranks import on_ranks
from test_finite import break_embedding
from test_fit_on_ranks import Stopped, tensors

from facelab.benchmark.scores import load_scores
from facelab.data.augment import normalise
from facelab.training import fit
from facelab.training.module import FaceModule

STEPS = 7
STOPS = {1: 1, 2: 3, 3: 4, 4: 6}  # processes → the step at which they stop; then one process again
COMMON = (
    *("trainer.batch_size=12", "trainer.accumulate=1", "trainer.precision=fp32", "trainer.accelerator=cpu"),
    *(f"trainer.max_steps={STEPS}", "trainer.validate_every=0.7", "trainer.save_every_steps=1", "trainer.log_every=1"),
    *("trainer.ema=0.9", "trainer.sync_batchnorm=true", "optimizer.lr=0.02"),
    *("data.inspect.images=false", "backbone.dropout=0", "loss.scale=16"),  # dropout is a function of the rank
    *("data.identities=23", "data.images_per_identity=7", "data.holdout.fraction=0.5", "benchmark.count=56"),
)
STATES = (
    *("loss=adaface_by_class", "loss.t_alpha=0.3", "loss.least=2", "data/sampler=adaptive"),
    *("head=groupface", "head.groups=4", "head.window=3"),
)
SHORT = ("trainer.max_steps=2", "trainer.validate_every=9", "trainer.deterministic=true")
EQUAL = 1e-9  # in float64; in float32 one activation that changes its sign grows to percents in some steps


def run(where, world, *more):
    config, plain = compose(*COMMON, *more, f"trainer.devices={world}")
    with pytest.MonkeyPatch.context() as patch:
        for drawn in ("facelab.report.run.draw", "facelab.training.groups.draw_groups"):  # others look at pictures
            patch.setattr(drawn, lambda *_, **__: None)
        fit.train(config, plain, where, one_process=False)


@contextmanager
def noting(where, stop=STEPS + 1):
    """Keeps the images of each step of this rank, computes in float64; stops before a step as a power failure would."""
    step, configure = FaceModule.training_step, FaceModule.configure_model

    def doubled(self):
        configure(self)
        self.double()

    def normalised(images):
        return normalise(images).double()

    def noted(self, batch, number):
        if self.progress.step == stop:
            raise Stopped
        rank = os.environ.get("RANK", "0")
        with open(where.parent / f"{where.name}.images-{self.progress.step}-{rank}", "w") as file:
            json.dump(batch.indices.tolist(), file)
        step(self, batch, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FaceModule, "training_step", noted)
        patch.setattr(FaceModule, "configure_model", doubled)
        for room in ("module", "groups"):
            patch.setattr(f"facelab.training.{room}.normalise", normalised)
        yield


def images(where):
    """(STEPS,B) the images of each step, in the order of ranks."""
    parts = [sorted(where.parent.glob(f"{where.name}.images-{step}-*")) for step in range(STEPS)]
    return [[image for part in of for image in json.loads(part.read_text())] for of in parts]


def job(rank, world, folder):
    launched = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    launched |= {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "localhost", "MASTER_PORT": 0}  # as torchrun says it
    before = dict(os.environ)
    os.environ.update({key: str(value) for key, value in launched.items()})
    try:
        with noting(folder / str(world)):
            run(folder / str(world), world, *STATES)
        with noting(folder / "chain", STOPS[world]), pytest.raises(Stopped):
            run(folder / "chain", world, *STATES)
        if world == 2:
            for name in ("fp32", "fp32 again", "bf16", "bf16 again"):
                run(folder / name, world, *SHORT, f"trainer.precision={name.split()[0]}")
        if world == 3:
            bad(folder / "bad", rank)
    finally:
        os.environ.clear()
        os.environ.update(before)
        torch.use_deterministic_algorithms(False)


def bad(where, rank):
    """As on a GPU: nobody looks at each step, and losses pass NaN on; an image of the second rank is to blame."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FaceModule, "stops_at_once", False)
        patch.setattr("facelab.loss.classifier.require_finite", lambda *_: None)
        break_embedding(patch, step=3, row=2, rank=1)
        with pytest.raises(ValueError, match="in step") as told:
            run(where, 3, "trainer.log_every=5", "trainer.save_every_steps=3", "trainer.validate_every=2")
    where.with_name(f"told{rank}").write_text(str(told.value))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with noting(folder / "1"):
        run(folder / "1", 1, *STATES)
    with noting(folder / "chain", STOPS[1]), pytest.raises(Stopped):
        run(folder / "chain", 1, *STATES)
    on_ranks((2, 3, 4), job, folder)
    with noting(folder / "chain"):
        run(folder / "chain", 1, *STATES)
    return folder


def history(where):
    with open(where / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


OTHERS = ["2", "3", "4", "chain"]


@pytest.mark.parametrize("name", OTHERS)
def test_the_same_images_in_the_same_order(folder, name):
    alone = images(folder / "1")
    assert [len(batch) for batch in alone] == [12] * STEPS
    assert len({image for batch in alone for image in batch}) > 40
    assert images(folder / name) == alone


@pytest.mark.parametrize("name", OTHERS)
def test_the_same_losses_and_weights(folder, name):
    alone, others = history(folder / "1"), history(folder / name)
    assert [row["step"] for row in others] == [row["step"] for row in alone]
    assert sum(bool(row["train/loss"]) for row in alone) == STEPS
    for wanted, row in zip(alone, others, strict=True):
        for key in ("train/loss", "train/grad_norm", "train/group_loss", "val/auc"):
            if wanted[key]:
                assert float(row[key]) == pytest.approx(float(wanted[key]), rel=EQUAL), (row["step"], key)
    wanted, found = tensors(folder / "1"), tensors(folder / name)
    assert wanted.keys() == found.keys()
    for key in ("loss.mean_norm", "loss.class_mean", "head.window_sums", "head.hidden.1.running_var"):
        assert f"model.{key}" in wanted
    assert {"model.average.backbone.features.running_mean", "sampler.weights"} <= wanted.keys()
    for key, value in wanted.items():
        limit = EQUAL * abs(value).max() + 1e-12  # a bias before another batch norm has no gradient but rounding
        np.testing.assert_allclose(found[key], value, rtol=0, atol=limit, err_msg=key)


@pytest.mark.parametrize("name", OTHERS)
def test_no_image_of_the_benchmark_is_scored_twice_or_missing(folder, name):
    wanted, found = (load_scores(folder / of / "scores" / "heldout.npz") for of in ("1", name))
    assert len(wanted.scores) == 56
    assert np.array_equal(wanted.same, found.same)
    np.testing.assert_allclose(found.scores, wanted.scores, rtol=0, atol=1e-5)  # float32
    assert np.abs(wanted.scores).std() > 1e-2  # another order of images would be seen


def test_the_record_tells_of_the_processes(folder):
    starts = json.loads((folder / "chain" / "environment.json").read_text())["starts"]
    assert [start["processes"] for start in starts] == [1, 2, 3, 4, 1]
    assert [start["images_per_process"] for start in starts] == [12, 6, 4, 3, 12]


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_a_deterministic_repeat_is_equal_bit_for_bit(folder, name):
    once, again = tensors(folder / name), tensors(folder / f"{name} again")
    assert once.keys() == again.keys()
    for key, value in once.items():
        assert value.tobytes() == again[key].tobytes(), key
    scores = [load_scores(folder / of / "scores" / "heldout.npz").scores for of in (name, f"{name} again")]
    assert scores[0].tobytes() == scores[1].tobytes()


def test_three_ranks_find_the_same_bad_step_as_gpus_do(folder):
    words = {(folder / f"told{rank}").read_text() for rank in range(3)}
    assert len(words) == 1
    assert re.search(
        r"nan in step 4 .*embeddings of \d+ of 4 images|nan in step 4 .*embeddings of \d+ of 12 im", *words
    )
    assert "last.ckpt, of step 3;" in words.pop()
    assert all(np.isfinite(value).all() for value in tensors(folder / "bad").values())


def test_what_has_no_deterministic_version_is_refused_in_one_line(tmp_path, monkeypatch):
    step = FaceModule.training_step

    def scattered(self, batch, number):
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))  # one of the few that a CPU refuses
        step(self, batch, number)

    monkeypatch.setattr(FaceModule, "training_step", scattered)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    try:
        with pytest.raises(
            ValueError, match=r"deterministic=true: put_ has no deterministic version .* set it to false"
        ):
            run(tmp_path / "run", 1, *SHORT)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
