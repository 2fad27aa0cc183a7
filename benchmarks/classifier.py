r"""Time and memory of a classifier's step, forward and backward: chunked against the plain method of the field.

    plain     normalise embeddings and centres, multiply, take the margin off the target, scale, cross-entropy: autograd
    facelab   CosFace with `chunk: auto`: the same loss and gradients
    unfused   the same by torch's passes where facelab has kernels, that is on a GPU
    whole     CosFace with `chunk: null`
    sampled   CosFace with `sample_rate: 0.1`: another loss, as PartialFC's
    prototypes  CosFace with `prototypes.queue: 32`, the queues drawn by chance and never searched: another loss
    hooks     CurricularFace with `chunk: auto`: a margin that maps the other classes, so autograd goes chunk by chunk
    gemm      four bare products of that size, in the products' number format, with no memory to pay

Every method has a process of its own, and in every round each makes a step, one after another, so that whatever else
the machine does slows all alike; on a GPU, whose memory they could not share, one method after another makes all its
steps. The first step is not counted. Ratios are medians of the rounds' ratios to plain. `extra` is the peak of memory
during a step beyond what it begins with and the centres' gradient: resident pages on a CPU (of Linux), torch's
allocations on a GPU. A method that runs out of memory stands in the table with these words.

    python benchmarks/classifier.py                                                  # CPU, B=512 D=512 C=200,000
    python benchmarks/classifier.py --classes 10000 20000 50000 100000 200000        # curves over C
    python benchmarks/classifier.py --device cuda --batch 1024 --precision bf16 \
        --methods plain facelab unfused sampled gemm --classes 10000 100000 1000000 10000000

Results go to results/classifier.csv, but from a busy machine only with --record; classifier_picture.py draws them, and
classifier_scaling.py says what they mean for more classes and GPUs.
"""

import argparse
import ctypes
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from recording import BUSY, RESULTS, load, machine, record, today

METHODS = ("plain", "facelab", "unfused", "whole", "sampled", "prototypes", "hooks", "gemm")
NO_MEMORY = "out of memory"
SCALE, MARGIN = 64.0, 0.35
STEP = 1  # not 0, at which queues are searched


def main() -> None:
    """Measures, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["plain", "facelab", "gemm"])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the products, by autocast")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--size", type=int, default=512, help="D, of an embedding")
    parser.add_argument("--classes", type=int, nargs="+", default=[200_000])
    parser.add_argument("--chunk", type=int, help="columns in a chunk, in place of auto")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--record", action="store_true", help="even from a busy machine")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the table")
    parser.add_argument("--worker", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    before = load()
    rows = [row for classes in options.classes for row in compare(options, classes, before)]
    if float(before) > BUSY and not options.record:
        print("not recorded")
        return
    key = ["machine", "python", "torch", "threads", "precision", "batch", "size", "classes", "chunk", "method"]
    print(record("classifier", key, rows, options.results))


def compare(options: argparse.Namespace, classes: int, before: str) -> list[dict[str, str]]:
    """One number of classes: the rows of the table."""
    sizes = {name: str(getattr(options, name)) for name in ("device", "precision", "batch", "size", "chunk")}
    about, steps = measure(options, classes, sizes)
    print(f"\nB={options.batch} D={options.size} C={classes:,} {options.precision}, {about['name']}")
    rows = []
    for method, found in steps.items():
        figures = summary(found, steps.get("plain", []))
        loss = "" if method == "gemm" or not all(found) else f"{found[0]['loss']:.5f}"
        print(
            f"{method:10} {figures['seconds']:>13} s {figures['time_to_plain']:>6} × plain   "
            f"{figures['extra_mib']:>9} MiB {figures['memory_to_plain']:>7} × plain   loss {loss}"
        )
        versions = {"python": platform.python_version(), "torch": about["torch"], "threads": str(about["threads"])}
        where = {"date": today(), "machine": about["name"], **versions}
        what = {**sizes, "chunk": sizes["chunk"].replace("None", "auto"), "classes": str(classes), "method": method}
        what.pop("device")
        rows.append({**where, **what, **figures, "loss": loss, "rounds": str(options.rounds), "load": before})
    return rows


def measure(
    options: argparse.Namespace, classes: int, sizes: dict[str, str]
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Where it was measured, and every method's steps; of one that runs out of memory they are empty."""
    flags = [part for name, value in sizes.items() if value != "None" for part in (f"--{name}", value)]
    about: dict[str, Any] = {}
    steps: dict[str, list[dict[str, Any]]] = {method: [] for method in options.methods}
    groups = [[method] for method in options.methods] if options.device == "cuda" else [options.methods]
    for group in groups:
        workers = {}
        for method in group:
            command = [sys.executable, __file__, "--worker", method, "--classes", str(classes), *flags]
            workers[method] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for worker in workers.values():
            about = ask(worker)["about"]  # a first step
        for _ in range(options.rounds):
            for method, worker in workers.items():
                steps[method].append(ask(worker)["step"])
        for worker in workers.values():
            worker.communicate()
    return about, steps


def summary(found: list[dict[str, Any]], plain: list[dict[str, Any]]) -> dict[str, str]:
    """Median seconds, the largest memory, and what they are of plain's."""
    if not all(found):
        return {"seconds": NO_MEMORY, "extra_mib": "", "time_to_plain": "", "memory_to_plain": ""}
    time_ratio = memory_ratio = ""
    if plain and all(plain):
        pairs = list(zip(found, plain, strict=True))
        time_ratio = f"{statistics.median(a['seconds'] / b['seconds'] for a, b in pairs):.3f}"
        memory_ratio = f"{statistics.median(a['extra'] / b['extra'] for a, b in pairs):.4f}"
    return {
        "seconds": f"{statistics.median(step['seconds'] for step in found):.4g}",
        "extra_mib": f"{max(step['extra'] for step in found) / 2**20:.1f}",
        "time_to_plain": time_ratio,
        "memory_to_plain": memory_ratio,
    }


def ask(worker: subprocess.Popen) -> dict[str, Any]:
    """Let a worker make a step."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write("\n")
    worker.stdin.flush()
    answer = worker.stdout.readline()
    if not answer:
        raise SystemExit("a worker ended early; what it said stands above")
    return json.loads(answer)


def work(options: argparse.Namespace) -> None:
    """A step for every line that is read: seconds, extra bytes, loss."""
    import torch

    cuda = options.device == "cuda"
    name = torch.cuda.get_device_name() if cuda else machine()
    about = {"name": name, "torch": torch.__version__, "threads": torch.get_num_threads()}
    step: Callable | None = None
    for _ in sys.stdin:
        try:
            if step is None:
                build(options, 1000)()  # loads libraries, which are not the method's
                step = build(options, options.classes[0])
            print(json.dumps({"about": about, "step": step()}), flush=True)
        except torch.OutOfMemoryError:
            step = dict
            print(json.dumps({"about": about, "step": {}}), flush=True)


def build(options: argparse.Namespace, classes: int) -> Callable[[], dict[str, float]]:
    """The centres, a batch, and a function that makes a step with them."""
    import torch

    device, method = torch.device(options.device), options.worker
    generator = torch.Generator(device).manual_seed(1)
    embeddings = torch.randn(options.batch, options.size, generator=generator, device=device)
    labels = torch.randint(classes, (options.batch,), generator=generator, device=device)
    loss = margin(options, classes).to_empty(device=device)
    for buffer in loss.buffers():
        buffer.zero_()
    if loss.queues is not None:
        loss.queues.classes.random_(classes, generator=generator)
    weight = loss.classifier.weight
    weight.data.normal_(std=0.01, generator=generator)
    memory = Allocated() if device.type == "cuda" else Resident()
    autocast = torch.autocast(device.type, torch.bfloat16) if options.precision == "bf16" else nullcontext()
    products = bare_products(embeddings, weight, options) if method == "gemm" else None

    def step() -> dict[str, float]:
        """One step: its seconds, memory and loss."""
        leaf = embeddings.detach().requires_grad_()
        weight.grad = None
        memory.begin()
        began = time.perf_counter()
        if products is not None:
            value = products()
        else:
            with autocast:
                value = plain(leaf, weight, labels) if method == "plain" else loss(leaf, labels, STEP).loss
            value.backward()
        value = value.item()  # waits for a GPU
        seconds = time.perf_counter() - began
        gradient = 0
        if weight.grad is not None:
            gradient = (weight.grad.coalesce().values() if weight.grad.is_sparse else weight.grad).nbytes
        return {"seconds": seconds, "extra": memory.end() - gradient, "loss": value}

    return step


def margin(options: argparse.Namespace, classes: int) -> Any:
    """Facelab's loss, without memory as yet."""
    import torch

    from facelab.loss import chunked_softmax
    from facelab.loss.classifier import ClassifierOptions
    from facelab.loss.cosface import CosFace
    from facelab.loss.curricularface import CurricularFace
    from facelab.loss.prototypes import Prototypes

    with torch.device("meta"):
        loss: Any = CosFace(options.size, classes, SCALE, MARGIN)
        if options.worker == "hooks":
            loss = CurricularFace(options.size, classes, SCALE, 0.5, 0.01)
    if options.worker == "unfused":
        chunked_softmax.fused = lambda scaled, product: False
    chunk = None if options.worker == "whole" else options.chunk or "auto"
    mined = Prototypes(32, 10**9, 0.0, "exact") if options.worker == "prototypes" else None
    loss.configure(ClassifierOptions(chunk, 0.1 if options.worker == "sampled" else 1.0, None, mined))
    return loss


def plain(embeddings: Any, weight: Any, labels: Any) -> Any:
    """CosFace as it is usually written, without a pass more than needed."""
    import torch
    import torch.nn.functional as F

    cosines = F.linear(F.normalize(embeddings), F.normalize(weight)).float()
    cosines[torch.arange(len(labels), device=labels.device), labels] -= MARGIN
    return F.cross_entropy(SCALE * cosines, labels)


def bare_products(embeddings: Any, weight: Any, options: argparse.Namespace) -> Callable[[], Any]:
    """Four products of B×C×D multiplications, block by block, into memory that is there already."""
    import torch

    numbers = torch.bfloat16 if options.precision == "bf16" else torch.float32
    rows, centres, block = embeddings.to(numbers), weight.data.to(numbers), 8192
    matrix, out = rows.new_empty(len(rows) * block), torch.empty_like(rows)
    gradient = torch.empty_like(centres[:block])

    def run() -> Any:
        for part in centres.split(block):
            logits = matrix[: len(rows) * len(part)].view(len(rows), len(part))
            for _ in range(2):
                torch.mm(rows, part.T, out=logits)
            torch.mm(logits, part, out=out)
            torch.mm(logits.T, rows, out=gradient[: len(part)])
        return out[0, 0]

    return run


class Resident:
    """The process's pages in memory, beyond those at the beginning, at most (Linux with glibc)."""

    def begin(self) -> None:
        """Count from here."""
        ctypes.CDLL(None).malloc_trim(0)  # what earlier steps have freed shall not count as there already
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
        self.before = self.read("VmRSS")

    def end(self) -> int:
        """Bytes."""
        return self.read("VmHWM") - self.before

    def read(self, name: str) -> int:
        """Bytes under a name of the process's status."""
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


class Allocated:
    """What torch has allocated on the GPU, beyond the beginning, at most."""

    def begin(self) -> None:
        """Count from here."""
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self.before = torch.cuda.memory_allocated()

    def end(self) -> int:
        """Bytes."""
        import torch

        return torch.cuda.max_memory_allocated() - self.before


if __name__ == "__main__":
    main()
