"""A teacher beside a run: what it sees, that it never changes, what becomes of its word, and what is refused."""

import csv
import shutil
from pathlib import Path

import hydra
import pytest
import torch
from hydra.utils import instantiate
from killing import compose
from safetensors import safe_open
from torch import nn

from facelab.backbone.stages import shapes
from facelab.data.augment import normalise
from facelab.data.plan import uniforms
from facelab.distill.base import Seen, Shapes
from facelab.door import configuration_folder
from facelab.resampling import antialiased, resample, whole
from facelab.training import fit
from facelab.training.lesson import Lesson, Teacher, caught
from facelab.training.module import FaceModule
from facelab.training.network import build_backbone
from facelab.training.teaching import COMMON
from facelab.training.trained import meta_of, out_of_checkpoint

QUICK = ("trainer.accelerator=cpu", "trainer.precision=fp32", "trainer.validate_every=100", "trainer.log_every=1")
OPTIONS = sorted(path.stem for path in (configuration_folder() / "distill").glob("*.yaml") if path.stem != "none")
WHO = ("student", "teacher")


def run(where: Path, *overrides: str) -> dict[str, float]:
    config, plain = compose(*QUICK, *overrides)
    return fit.train(config, plain, where, one_process=False)


def tensors(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as file:
        names = list(file.keys())
        return {key: file.get_tensor(key) for key in names}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The checkpoint of a network with attention, which has seen three batches."""
    where = tmp_path_factory.mktemp("teacher") / "run"
    run(where, "backbone.attention=cbam", "trainer.max_steps=3", "loss.scale=16")
    return where / "checkpoints" / "last.ckpt"


def taught(teacher: Path, option: str, *more: str) -> tuple[str, ...]:
    return (f"distill={option}", f"distill.teacher.checkpoint={teacher}", "backbone.attention=cbam", *more)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_distiller_trains_and_its_teacher_stays_as_it_was(teacher, tmp_path, option, monkeypatch):
    before, kept = tensors(teacher), []
    begin = Lesson.begin

    def beginning(self, *args):
        begin(self, *args)
        kept.append(self)

    monkeypatch.setattr(Lesson, "begin", beginning)
    run(tmp_path / "run", *taught(teacher, option), "trainer.max_steps=2", "loss.scale=16")
    (lesson,) = kept
    for name, value in lesson.teacher.network[0].state_dict().items():
        assert torch.equal(value, before[f"model.backbone.{name}"]), name
    parameters = list(lesson.teacher.network.parameters())
    assert parameters
    assert not any(p.requires_grad or p.grad is not None for p in parameters)
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    own, term = float(rows[-1]["train/loss/own"]), float(rows[-1]["train/distill"])
    assert float(rows[-1]["train/loss"]) == pytest.approx(own + term, rel=1e-5)
    ways = lesson.distiller
    assert (term == 0) == (ways.inherits_centres and not list(ways.children()))
    student = tensors(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert not any(key.startswith("model.lesson") for key in student)
    same = torch.equal(student["model.loss.classifier.weight"], before["model.loss.classifier.weight"])
    assert same == ways.inherits_centres


def test_teacher_and_student_see_the_same_augmented_face_and_the_student_its_degraded_copy(
    teacher, tmp_path, monkeypatch
):
    clean, given = [], []
    see, loss = Teacher.see, FaceModule._loss

    def seeing(self, images, *args):
        clean.append(images.clone())
        return see(self, images, *args)

    def lossy(self, images, *args):
        given.append((images.clone(), args[2].clone(), self))
        return loss(self, images, *args)

    monkeypatch.setattr(Teacher, "see", seeing)
    monkeypatch.setattr(FaceModule, "_loss", lossy)
    degrade = ("data/degrade=lowres", "data.degrade.sizes=[12,24]", "data.degrade.prob=0.7")
    run(tmp_path / "run", *taught(teacher, "embedding"), *degrade, "trainer.max_steps=2", "seed=3")
    assert len(clean) == len(given) == 6  # two steps in three parts
    changed = 0
    for number, (face, (small, indices, module)) in enumerate(zip(clean, given, strict=True)):
        first = module.augment.draws
        draws = torch.from_numpy(uniforms(3, 0, indices.numpy(), first + module.degrade.draws))
        assert torch.equal(module.degrade(face, draws[:, first:]), small), number
        changed += int((face != small).flatten(1).any(1).sum())
    assert 0.4 * 32 < changed < 32


def test_a_teacher_has_its_own_size_and_precision():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network.embedding_size = 16
    images = torch.randint(0, 256, (2, 48, 48, 3), dtype=torch.uint8)
    teacher = Teacher(network, nn.Identity(), 32, bf16=False)
    with torch.autocast("cpu", torch.bfloat16):  # the student's, which is not the teacher's
        seen = teacher.see(images, False, False).embeddings
    weights = torch.from_numpy(whole(antialiased("bicubic", 48, 32))).expand(2, -1, -1)
    small = resample(images.float(), weights).to(torch.uint8)
    assert torch.equal(seen, network(normalise(small)))
    half = Teacher(network, nn.Identity(), 32, bf16=True).see(images, False, False).embeddings
    assert half.dtype == torch.float32
    assert not torch.equal(half, seen)
    torch.testing.assert_close(half, seen, rtol=0.05, atol=0.05)


def test_an_interrupted_student_goes_on_as_if_nothing_had_happened(teacher, tmp_path):
    """With a projection of the distiller's own, which learns."""
    overrides = (*taught(teacher, "fitnet"), "trainer.save_every_steps=2", "trainer.max_steps=4")
    run(tmp_path / "alone", *overrides)
    step = FaceModule.training_step

    def failing(self, batch, number):
        if self.progress.step == 3:
            raise RuntimeError("power failure")
        step(self, batch, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FaceModule, "training_step", failing)
        with pytest.raises(RuntimeError, match="power failure"):
            run(tmp_path / "again", *overrides)
    run(tmp_path / "again", *overrides)
    alone, again = (tensors(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("alone", "again"))
    assert any(key.startswith("model.distiller.") for key in alone)
    assert any(key.startswith("optimizer.distiller.") for key in alone)
    assert alone.keys() == again.keys()
    assert all(torch.equal(alone[key], again[key]) for key in alone)


def test_a_run_goes_on_with_the_teacher_that_it_began_with(teacher, tmp_path):
    own = tmp_path / "teacher.ckpt"
    shutil.copy(teacher, own)
    overrides = (*taught(own, "embedding"), "trainer.save_every_steps=1", "trainer.max_steps=2")
    step = FaceModule.training_step

    def failing(self, batch, number):
        if self.progress.step == 1:
            raise RuntimeError("power failure")
        step(self, batch, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FaceModule, "training_step", failing)
        with pytest.raises(RuntimeError, match="power failure"):
            run(tmp_path / "run", *overrides)
    shutil.copy(teacher.with_name("best.ckpt"), own)
    with pytest.raises(ValueError, match="is not the file that this run began with"):
        run(tmp_path / "run", *overrides)
    shutil.copy(teacher, own)
    run(tmp_path / "run", *overrides)


def test_the_teachers_word_alone(teacher, tmp_path):
    run(tmp_path / "run", *taught(teacher, "embedding"), "distill.loss_weight=0", "trainer.max_steps=1")
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["train/loss"])
    assert float(row["train/loss"]) == pytest.approx(float(row["train/distill"]), rel=1e-6)
    assert float(row["train/loss/own"]) > 1


BACKBONES = sorted(path.stem for path in (configuration_folder() / "backbone").glob("*.yaml"))


@pytest.fixture(scope="module")
def networks():
    """Of each option the network of a run, of shapes alone, with attention where there is such an option."""
    made = {}
    with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"), torch.device("meta"):
        for option in BACKBONES:
            node = hydra.compose("config", [f"backbone={option}"]).backbone
            if "attention" in node:
                node.attention = "cbam"
            made[option] = build_backbone(node, load=False)
    return made


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_shows_the_maps_that_it_was_said_to_have(networks, sizes, backbone):
    """On the meta device, which knows the shape of all that is computed, and computes nothing."""
    network, (features, attention) = networks[backbone].train(), sizes[backbone]
    with caught(network, True, bool(attention)) as maps:
        seen = maps.seen(network(torch.empty(4, 3, 112, 112, device="meta")))
    assert [tuple(one.shape) for one in seen.features] == [(4, *shape) for shape in features]
    assert len(features) >= 3
    assert [tuple(one.shape) for one, _ in seen.attention] == [(4, channels, 1, 1) for channels, _, _ in attention]
    assert [tuple(one.shape) for _, one in seen.attention] == [(4, 1, *sides) for _, *sides in attention]
    assert seen.embeddings.shape == (4, network.embedding_size)
    assert all(one.requires_grad for one in (*seen.features, *(m for pair in seen.attention for m in pair)))


@pytest.fixture(scope="module")
def sizes(networks):
    """Of each option the shapes of its maps."""
    return {option: shapes(network, 112) for option, network in networks.items()}


@pytest.fixture(scope="module")
def nodes():
    with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        composed = {option: hydra.compose("config", [f"distill={option}"]).distill for option in OPTIONS}
    return {option: {k: v for k, v in node.items() if k not in COMMON} for option, node in composed.items()}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_learns_by_every_distiller(networks, sizes, nodes, backbone, option):
    """From numbers of the shapes of its maps; the teacher is another network of the same option."""
    features, attention = sizes[backbone]
    size = networks[backbone].embedding_size
    both = {who: Shapes(f"{who} {backbone}", size, tuple(features), tuple(attention), 64.0) for who in WHO}
    if option in ("attention_similarity", "sum") and not attention:
        with pytest.raises(ValueError, match="has no attention"):
            instantiate(nodes[option], _partial_=True)(**both)
        return
    distiller = instantiate(nodes[option], _partial_=True)(**both)
    student, teacher = (seen(size, features, attention, seed) for seed in (0, 1))
    for one in leaves(student):
        one.requires_grad_()
    labels = torch.tensor([0, 1, 2, 0])
    term = distiller(student, teacher, labels)
    assert bool(term.isfinite())
    margins = distiller.margins(teacher, labels)
    assert (margins is not None) == distiller.gives_margins
    if not term.requires_grad:
        assert distiller.inherits_centres
        return
    term.backward()
    moved = [one for one in leaves(student) if one.grad is not None and bool(one.grad.abs().sum() > 0)]
    wanted = distiller.wants_features, distiller.wants_attention
    assert len(moved) >= len(features) * wanted[0] + 2 * len(attention) * wanted[1]
    assert moved


def seen(size: int, features: list, attention: list, seed: int) -> Seen:
    generator = torch.Generator().manual_seed(seed)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    maps = tuple((numbers(4, channels, 1, 1), numbers(4, 1, *sides)) for channels, *sides in attention)
    return Seen(numbers(4, size), tuple(numbers(4, *one) for one in features), maps, numbers(5, size))


def leaves(one: Seen) -> list[torch.Tensor]:
    return [one.embeddings, one.centres, *one.features, *(tensor for pair in one.attention for tensor in pair)]


def test_it_is_asked_without_gradients(teacher):
    found = out_of_checkpoint("x", teacher, meta_of(teacher), None)
    asked = Teacher(found.backbone, found.head, 48, bf16=False)
    images = torch.randint(0, 256, (2, 48, 48, 3), dtype=torch.uint8)
    seen = asked.see(images, True, True)
    assert len(seen.features) == 4
    assert len(seen.attention) == 4
    maps = [*seen.features, *(one for pair in seen.attention for one in pair), seen.embeddings]
    assert not any(one.requires_grad for one in maps)
    alone = asked.see(images[:1], False, False).embeddings  # in evaluation mode nobody looks at the others
    torch.testing.assert_close(alone, seen.embeddings[:1], rtol=1e-4, atol=1e-4)
    with caught(found.backbone, False, False) as nothing:
        found.backbone(normalise(images))
    assert nothing.features == nothing.attention == []


WRONG = {
    "no teacher": (["distill=embedding"], "distill.teacher.checkpoint is null: name the teacher"),
    "no distiller": (["distill.teacher.checkpoint={teacher}"], "distill=none does not ask it"),
    "no file": (["distill=embedding", "distill.teacher.checkpoint=nowhere.ckpt"], "nowhere.ckpt: no such file"),
    "no attention here": (
        ["distill=attention_similarity", "distill.teacher.checkpoint={teacher}"],
        "the student IResNet has no attention.*backbone.attention=cbam",
    ),
    "another size": (
        ["distill=embedding", "distill.teacher.checkpoint={teacher}", "backbone.embedding_size=24"],
        "set backbone.embedding_size=16",
    ),
    "no centres of its own": (
        ["distill=logits", "distill.teacher.checkpoint={teacher}", "loss=triplet", "data/sampler=pk"],
        "Logits needs class centres, and Triplet has none",
    ),
    "other people": (
        ["distill=logits", "distill.teacher.checkpoint={teacher}", "data.identities=30"],
        "has centres of .* classes, and the data have",
    ),
    "no margins": (
        ["distill=margin", "distill.teacher.checkpoint={teacher}", "loss=norm_softmax"],
        "MarginLoss does not take: choose loss=arcface or loss=cosface",
    ),
    "sampled classes": (
        ["distill=logits", "distill.teacher.checkpoint={teacher}", "loss.classifier.sample_rate=0.5"],
        "Logits looks at all classes",
    ),
    "two givers of centres": (
        ["distill=inherited_classifier", "distill.teacher.checkpoint={teacher}", "loss.classifier.weights={teacher}"],
        "loss.classifier.weights is .*leave it at null",
    ),
    "its size is known": (
        ["distill=embedding", "distill.teacher.checkpoint={teacher}", "distill.teacher.size=56"],
        "distill.teacher.size is 56, and .* was trained on 48 pixels",
    ),
    "its network is known": (
        ["distill=embedding", "distill.teacher.checkpoint={teacher}", "backbone@distill.teacher.backbone=r50"],
        "says itself what network it is",
    ),
    "weight": (
        ["distill=embedding", "distill.teacher.checkpoint={teacher}", "distill.loss_weight=-1"],
        "distill.loss_weight is -1",
    ),
    "precision": (
        ["distill=embedding", "distill.teacher.checkpoint={teacher}", "distill.teacher.precision=fp8"],
        "distill.teacher.precision is 'fp8': give one of auto, bf16, fp32",
    ),
    "no average": (
        ["distill=embedding", "distill.teacher.checkpoint={teacher}", "distill.teacher.ema=true"],
        "distill.teacher.ema=true, but .* was trained without trainer.ema",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_taught_is_refused_before_training(teacher, tmp_path, case):
    overrides, words = WRONG[case]
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        run(tmp_path / "run", *(one.format(teacher=teacher) for one in overrides))
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_published_weights_teach_when_their_network_is_named(tmp_path):
    config, _ = compose("backbone.embedding_size=32")
    torch.save({}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"add backbone@distill\.teacher\.backbone=…, one of"):
        run(tmp_path / "run", "distill=embedding", f"distill.teacher.checkpoint={tmp_path / 'x.pth'}")
    network = build_backbone(config.backbone, load=False)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    run(
        tmp_path / "run",
        "distill=embedding",
        f"distill.teacher.checkpoint={tmp_path / 'weights.pth'}",
        "backbone@distill.teacher.backbone=tiny",
        "distill.teacher.backbone.widths=[16,16,16,32]",
        "distill.teacher.backbone.embedding_size=32",
        "backbone.embedding_size=32",
        "trainer.max_steps=1",
    )
    with pytest.raises(ValueError, match="is published weights, which have none"):
        run(
            tmp_path / "other",
            "distill=logits",
            f"distill.teacher.checkpoint={tmp_path / 'weights.pth'}",
            "backbone@distill.teacher.backbone=tiny",
            "distill.teacher.backbone.widths=[16,16,16,32]",
            "distill.teacher.backbone.embedding_size=32",
            "backbone.embedding_size=32",
        )
