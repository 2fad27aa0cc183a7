"""The Triton kernels: run by the interpreter in a process of its own, built for GPUs that are not here, and on one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import test_chunked_classifier as chunked
import torch

from facelab.loss import chunked_softmax

FOLDER = Path(__file__).parent
KERNELS = "facelab.loss.chunk_kernels"


def test_interpreted_they_compute_what_torch_does():
    """Triton reads the variable when it is imported, hence another process."""
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(FOLDER / "interpreted_kernels.py")],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-5000:]


POINTERS = {
    "matrix": "product", "room": "product", "units": "product", "grad": "product", "place": "i64",
    "rows": "fp32", "out": "fp32", "inverse": "fp32", "largest": "fp32", "sums": "fp32", "best": "fp32", "own": "fp32",
    "limit": "fp32",
}  # fmt: skip


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("name", "product", "missing", "constants"),
    [
        ("_scan", "bf16", (), {"BLOCK": 8192}),
        ("_scan", "fp32", ("limit", "room"), {"BLOCK": 16}),
        ("_exponentials", "fp16", (), {"BLOCK": 2048}),
        ("_exponentials", "bf16", ("limit",), {"BLOCK": 16}),
        ("_normalise", "bf16", (), {"FLOOR": 1e-8, "ROWS": 8, "WIDTH": 512}),
        ("_project", "bf16", (), {"ROWS": 8, "WIDTH": 512}),
    ],
)
def test_they_can_be_built_for_a_gpu(name, product, missing, constants, capability, tmp_path, monkeypatch):
    """What the interpreter lets pass and the compiler does not; nothing is run."""
    pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from facelab.loss import chunk_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(chunk_kernels, name)
    constants = {**constants, **dict.fromkeys(missing)}
    types = {key: "constexpr" if key in constants else "i32" for key in kernel.arg_names}
    for key in types.keys() & POINTERS.keys() - constants.keys():
        types[key] = "*" + (product if POINTERS[key] == "product" else POINTERS[key])
    places = {(kernel.arg_names.index(key),): value for key, value in constants.items()}
    built = compile(
        ASTSource(kernel, types, places), target=GPUTarget("cuda", capability, 32), options=chunk_kernels._FUSE
    )
    assert f"sm_{capability}" in built.asm["ptx"]


def test_where_there_is_no_triton_nobody_needs_it(monkeypatch):
    monkeypatch.delitem(sys.modules, KERNELS, raising=False)
    monkeypatch.delattr("facelab.loss.chunk_kernels", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    embeddings, weight, labels = chunked.batch(20, dtype=torch.float32)
    assert chunked.compute(chunked.made(chunked.LOSSES["cosface"], weight, 5), embeddings, labels)["loss"] > 0
    assert KERNELS not in sys.modules

    class OnGpu:
        is_cuda, dtype, device = True, torch.float32, torch.device("cuda")

    assert not chunked_softmax.fused(OnGpu(), torch.bfloat16)


@pytest.mark.parametrize(("dtype", "product"), [(torch.float64, torch.float64), (torch.float32, torch.float8_e4m3fn)])
def test_formats_that_are_torchs(dtype, product, monkeypatch):
    class OnGpu:
        is_cuda, device = True, torch.device("cuda")

    pytest.importorskip("triton")
    monkeypatch.setattr("facelab.loss.chunk_kernels.runs_on", lambda device: True)
    OnGpu.dtype = dtype
    assert not chunked_softmax.fused(OnGpu(), product)
    OnGpu.dtype = torch.float32
    assert chunked_softmax.fused(OnGpu(), torch.float32)
    OnGpu.is_cuda = False
    assert not chunked_softmax.fused(OnGpu(), torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("interclass_filter", [None, 0.6])
@pytest.mark.parametrize("rows", [100, 700])  # D = 128: all exponentials are kept, and some
@pytest.mark.parametrize("product", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu_they_compute_what_torch_does(product, rows, interclass_filter, monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from facelab.loss.cosface import CosFace

    generator = torch.Generator("cuda").manual_seed(0)
    weight = torch.randn(10_001, 128, device="cuda", generator=generator)
    labels = torch.randint(len(weight), (rows,), device="cuda", generator=generator)
    embeddings = weight[labels] + torch.randn(rows, 128, device="cuda", generator=generator)
    results = []
    for kernels in (False, True):
        real = chunked_softmax.fused
        if kernels:
            assert real(embeddings, product)
        monkeypatch.setattr(chunked_softmax, "fused", lambda *_, kernels=kernels: kernels)
        loss = chunked.made(lambda c: CosFace(128, c, 64.0, 0.35).cuda(), weight, 1333, interclass_filter)
        leaf = embeddings.clone().requires_grad_()
        with torch.autocast("cuda", dtype=product, enabled=product != torch.float32):
            value, logs, _ = loss(leaf, labels, 0)
        value.backward()
        results.append({"loss": value.detach(), **logs, "x": leaf.grad, "w": loss.classifier.weight.grad})
        monkeypatch.setattr(chunked_softmax, "fused", real)
    torch_, kernels = results
    for key, value in torch_.items():
        off = (kernels[key] - value).norm() / value.norm()
        assert off < (1e-5 if product == torch.float32 else 4 * torch.finfo(product).eps), key


@pytest.mark.gpu
def test_on_a_gpu_their_memory_is_a_chunks(monkeypatch):
    """Beside the gradient of the centres no more than a few buffers of a chunk."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from facelab.loss.cosface import CosFace

    classes, size, rows, chunk = 500_000, 128, 256, 4096
    weight = torch.randn(classes, size, device="cuda")
    loss = chunked.made(lambda c: CosFace(size, c, 64.0, 0.35).cuda(), weight, chunk)
    del weight
    embeddings = torch.randn(rows, size, device="cuda", requires_grad=True)
    labels = torch.randint(classes, (rows,), device="cuda")
    for _ in range(2):  # the first time libraries take their own
        loss.zero_grad()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            value = loss(embeddings, labels, 0).loss
        value.backward()
        torch.cuda.synchronize()
        extra = torch.cuda.max_memory_allocated() - before - 4 * classes * size
    tile = 2 * chunk * (rows + 2 * size)
    assert extra < 2 * tile + 2 * 4 * rows * (classes // chunk + 1) + 20 * 4 * rows * size
