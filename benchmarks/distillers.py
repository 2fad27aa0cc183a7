"""What a teacher costs: a distilled training step over a plain one and the teacher's forward pass, for every distiller.

In every round each way takes a few steps, one way after another in this one process, so that whatever else the machine
does slows all alike: the student's step without a teacher (uint8 images → mirror and shift → backbone → ArcFace →
gradients → SGD), the teacher's forward pass alone, and the step with each distiller of conf/distill, all as a training
does them (`facelab.training.lesson`). Teacher and student are the same network with other weights.

    python benchmarks/distillers.py                                  # tiny on a CPU, r50 on a GPU
    python benchmarks/distillers.py --backbone ir_50 --batch 32

`over_step_and_teacher` is the median of the rounds' ratios, distilled ÷ (plain + teacher's forward); `over_step` is
distilled ÷ plain. `kept_ratio` is what autograd keeps for the backward pass, over the same of a plain step (on a GPU:
the most that is allocated, teacher included). Results go to results/distillers.csv; `load` is the machine's load
average beforehand, below 0.7 on a quiet machine.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from recording import load, machine, record, today
from torch import Tensor, nn

from facelab.backbone.stages import shapes
from facelab.data.augment import normalise
from facelab.distill.base import Shapes
from facelab.training.lesson import Lesson, Teacher
from facelab.training.network import build_backbone
from facelab.training.objective import build_loss
from facelab.training.strategy import clip_gradients, keep_memory
from facelab.training.teaching import COMMON

CONF = Path(__file__).resolve().parents[1] / "conf"
OPTIONS = sorted(path.stem for path in (CONF / "distill").glob("*.yaml") if path.stem != "none")
CLASSES = 1000
KEY = ["machine", "torch", "backbone", "precision", "batch", "distill"]


def network(node: Any, device: torch.device) -> Any:
    """What a `backbone` node describes, with random values."""
    return build_backbone(node, load=False).to(device)


class Student:
    """A network in training, its teacher, and the ways in which a step can be taken."""

    def __init__(self, options: argparse.Namespace, device: torch.device):
        self.options, self.device = options, device
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("config", [f"backbone={options.backbone}"])
            self.nodes = {name: compose("config", [f"distill={name}"]).distill for name in OPTIONS}
        if "attention" in config.backbone:
            config.backbone.attention = "cbam"
        torch.manual_seed(0)
        self.size: int = config.data.size
        self.backbone = network(config.backbone, device).to(memory_format=torch.channels_last).train()
        other = network(config.backbone, device)
        self.loss: Any = build_loss(config.loss, self.backbone.embedding_size, CLASSES).to(device)
        self.augment, self.recipe = instantiate(config.data.augment), instantiate(config.optimizer)
        self.teacher = Teacher(other, nn.Identity(), self.size, bf16=options.precision == "bf16")
        features, attention = shapes(self.backbone, self.size)
        self.both = {
            who: Shapes(who, self.backbone.embedding_size, tuple(features), tuple(attention), 64.0)
            for who in ("student", "teacher")
        }
        self.has_attention = bool(attention)
        generator = torch.Generator().manual_seed(0)
        shape = (options.batch, self.size, self.size, 3)
        self.images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)
        self.labels = torch.randint(CLASSES, (options.batch,), generator=generator).to(device)
        self.draws = torch.rand(options.batch, self.augment.draws, generator=generator).to(device)

    def lesson(self, name: str) -> Lesson | None:
        """What a run with this distiller has; None where these networks cannot be compared by it."""
        node = {key: value for key, value in self.nodes[name].items() if key not in COMMON}
        try:
            distiller = instantiate(node, _partial_=True)(**self.both).to(self.device)
        except ValueError:
            assert not self.has_attention
            return None
        lesson = Lesson(self.teacher, 1.0)
        lesson.begin(distiller, self.loss, self.loss.classifier.weight.detach().clone())
        return lesson

    def stepper(self, lesson: Lesson | None) -> Callable[[], Any]:
        """A training step, with a teacher or without."""
        parts: list[nn.Module] = [self.backbone, self.loss, *([lesson.distiller] if lesson else [])]
        frozen = lesson is not None and lesson.distiller.inherits_centres
        self.loss.classifier.requires_grad_(not frozen)
        optimizer = self.recipe.build(nn.ModuleList(parts))

        def step() -> None:
            self.loss.classifier.requires_grad_(not frozen)
            optimizer.zero_grad()
            self.forward(lesson).backward()
            clip_gradients([p for part in parts for p in part.parameters() if p.grad is not None], [], 5.0)
            optimizer.step()

        return step

    def forward(self, lesson: Lesson | None) -> Tensor:
        """The loss of the batch."""
        images = self.augment(self.images, self.draws)
        with self.half(), nullcontext() if lesson is None else lesson.watch(self.backbone) as maps:
            embeddings = self.backbone(normalise(images))
            if lesson is None or maps is None:
                return self.loss(embeddings, self.labels, 0).loss
            return lesson(embeddings, maps, images, self.labels, 0).loss

    def half(self) -> Any:
        """The student's precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.precision == "bf16")

    def look(self) -> None:
        """The teacher's forward pass alone."""
        self.teacher.see(self.images, False, False)

    def kept(self, lesson: Lesson | None) -> int:
        """Bytes that autograd keeps for the backward pass; on a GPU the most that a step has allocated."""
        self.backbone.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.forward(lesson).backward()
            return torch.cuda.max_memory_allocated()
        seen: dict[int, int] = {}
        own = {p.untyped_storage().data_ptr() for part in (self.backbone, self.loss) for p in part.parameters()}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            held = self.forward(lesson)
        total = sum(seen.values())
        del held
        return total


def seconds(action: Callable[[], Any], times: int, device: torch.device) -> float:
    """Of one call, the mean of several."""
    began = time.perf_counter()
    for _ in range(times):
        action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / times


def main() -> None:
    """Measures, prints, records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpu = torch.cuda.is_available()
    parser.add_argument("--backbone", default="r50" if gpu else "tiny", help="an option of conf/backbone (%(default)s)")
    parser.add_argument("--batch", type=int, default=128 if gpu else 64, help="images (%(default)s)")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="of both (%(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="(%(default)s)")
    parser.add_argument("--steps", type=int, default=10 if gpu else 2, help="of each way in a round (%(default)s)")
    options = parser.parse_args()
    device = torch.device("cuda" if gpu else "cpu")
    before = load()
    if not gpu:
        keep_memory()
    student = Student(options, device)
    lessons = {name: student.lesson(name) for name in OPTIONS}
    ways = {name: student.stepper(lesson) for name, lesson in lessons.items() if lesson is not None}
    kept = {name: student.kept(lessons[name]) for name in ways}
    plain, without = student.stepper(None), student.kept(None)
    times: dict[str, list[float]] = {name: [] for name in ("plain", "teacher", *ways)}
    for number in range(options.rounds + 1):
        for name, action in (("plain", plain), ("teacher", student.look), *ways.items()):
            taken = seconds(action, options.steps, device)
            if number:  # the first warms up
                times[name].append(taken)
        print(f"round {number} of {options.rounds}", flush=True)
    rows = []
    for name in ways:
        ratios = [d / (p + t) for d, p, t in zip(times[name], times["plain"], times["teacher"], strict=True)]
        steps = [d / p for d, p in zip(times[name], times["plain"], strict=True)]
        teacher = [t / p for t, p in zip(times["teacher"], times["plain"], strict=True)]
        rows.append(
            {
                "date": today(),
                "machine": torch.cuda.get_device_name() if gpu else machine(),
                "python": platform.python_version(),
                "torch": torch.__version__,
                "backbone": options.backbone + "+cbam" * student.has_attention,
                "precision": options.precision,
                "batch": str(options.batch),
                "distill": name,
                "over_step_and_teacher": f"{statistics.median(ratios):.3f}",
                "over_step": f"{statistics.median(steps):.3f}",
                "kept_ratio": f"{kept[name] / without:.3f}",
                "teacher_over_step": f"{statistics.median(teacher):.3f}",
                "rounds": str(options.rounds),
                "load": before,
            }
        )
        print(f"{name:22}{rows[-1]['over_step_and_teacher']:>8}{rows[-1]['over_step']:>8}{rows[-1]['kept_ratio']:>8}")
    print(f"recorded in {record('distillers', KEY, rows)} ({os.cpu_count()} cores)")


if __name__ == "__main__":
    main()
