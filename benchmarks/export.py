"""What an export costs in accuracy: a published MobileFaceNet on LFW, in every format and precision, side by side.

    python benchmarks/export.py                          all ten folds of View 2; some minutes for each row
    python benchmarks/export.py --folds 2                the first folds alone, for a look
    python benchmarks/export.py --only openvino/int8     some rows
    python benchmarks/export.py --walk                   every backbone of conf/backbone as it is × every format

int8 learns its scales from CelebA's faces, of people who are not in LFW. Rows go to benchmarks/results/export.csv.
"""

import argparse
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from recording import load, machine, record, today
from torch import nn

from facelab.benchmark.pairs import PairBenchmark
from facelab.door import configuration_folder
from facelab.export.choices import Choices
from facelab.export.export import Original, export, prepared
from facelab.export.loading import formats, load_embedder
from facelab.export.networks import node_of
from facelab.tracking import Tracker
from facelab.training.module import embed
from facelab.training.trained import Trained

ROWS = (
    *("safetensors/fp32", "onnx/fp32", "onnx/fp16", "onnx/int8", "torchscript/fp32", "torchscript/bf16"),
    *("exported_program/fp32", "openvino/fp32", "openvino/fp16", "openvino/bf16", "openvino/int8"),
)
RUNTIME = {"onnx": "onnxruntime", "openvino": "openvino"}  # of the others it is torch
SIZE = 112


def exported(data: Path, where: Path, row: str) -> Path:
    """The published network in one form; embeddings are not normalised, so that LFW is what it is for the original."""
    name, precision = row.split("/")
    words = [
        f"checkpoint={data / 'weights' / 'mobilefacenet_y1.npz'}",
        *("backbone=mobilefacenet", f"format={name}", f"precision={precision}", "unit=false", "progress=false"),
        *(f"calibration.faces={data / 'celeba'}", f"parity.faces={data / 'celeba'}", "parity.identities=64"),
    ]
    OmegaConf.register_new_resolver("facelab.job", lambda: "benchmark", replace=True)
    with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        config = hydra.compose("export", words)
    return export(config, where / row.replace("/", "_"))


def lfw(data: Path, folds: int, where: Path) -> tuple[PairBenchmark, Any, np.ndarray]:
    """The protocol, its pairs, and (M,112,112,3) of its images."""
    lines = (data / "lfw" / "pairs.txt").read_text().splitlines()
    per = int(lines[0].split()[1])
    chosen = where / "pairs.txt"
    chosen.write_text("\n".join([f"{folds}\t{per}", *lines[1 : 1 + 2 * per * folds]]) + "\n")
    plain = ({"beta": 0.0, "gamma": 1.0}, {"alpha": 0.0, "beta": 0.0})
    benchmark = PairBenchmark(
        "lfw", str(data / "lfw" / "images"), str(chosen), folds, True, [1e-3], "at_most", SIZE, 0, 0, *plain
    )
    pairs = benchmark.open(None)
    return benchmark, pairs, np.stack([pairs.load(i) for i in range(len(pairs))])


def measured(file: Path, benchmark: PairBenchmark, pairs: Any, images: np.ndarray) -> dict[str, str]:
    """LFW's numbers of one file, and the seconds that embedding took."""
    embedder = load_embedder(file)
    rows, began = [], time.perf_counter()
    with Tracker(file.parent.name, True) as tell:
        for start in range(0, len(images), 64):
            part = images[start : start + 64]
            rows.append(embedder.features(part) + embedder.features(np.ascontiguousarray(part[:, :, ::-1])))
            tell(start + len(part), len(images))
    seconds = time.perf_counter() - began
    metrics = benchmark.evaluate(np.concatenate(rows), pairs).metrics
    return {
        "accuracy": f"{100 * metrics['lfw/accuracy']:.2f}",
        "accuracy_std": f"{100 * metrics['lfw/accuracy_std']:.2f}",
        "tar_at_far_1e-3": f"{100 * metrics['lfw/tar@far=1e-3']:.2f}",
        "eer": f"{100 * metrics['lfw/eer']:.3f}",
        "seconds": f"{seconds:.0f}",
    }


def walk() -> None:
    """Every backbone of conf/backbone, untrained, in every format that holds models: the distance to the original."""
    names = sorted(file.stem for file in (configuration_folder() / "backbone").glob("*.yaml"))
    faces = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    form = Choices("fp32", preprocessing=True, mirror=False, unit=True, batch=None, fold=True)
    for name in names:
        group = name == "groupface_r100"  # r100 with a head
        torch.manual_seed(0)
        network = instantiate(node_of("r100" if group else name, SIZE)).train()
        head: nn.Module = nn.Identity()
        if group:
            node = OmegaConf.load(configuration_folder() / "head" / "groupface.yaml")
            head = instantiate(node, embedding_size=network.embedding_size)
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = 1.0
        with torch.no_grad():
            network(torch.randn(4, 3, SIZE, SIZE))
        original = Original(Path(__file__), Trained(network.eval(), head.eval(), name), {}, None, SIZE)
        with torch.inference_mode():
            rows = embed(nn.Sequential(network, head), torch.from_numpy(faces), False)
        expected = nn.functional.normalize(rows).numpy()
        for kind in (one for one in formats() if one.embeds):
            with tempfile.TemporaryDirectory() as folder:
                began = time.perf_counter()
                file = Path(folder) / f"model{kind.suffix}"
                kind.write(prepared(original, form, kind, None)[0], file)
                distance = np.square(load_embedder(file).embed(faces) - expected).sum(1).max() / 2
                took = time.perf_counter() - began
            verdict = "same" if distance < 1e-7 else "NOT THE SAME"
            print(f"{name:16} {kind.name:18} {distance:8.1e}  {verdict}  {took:5.0f} s", flush=True)


def main() -> None:
    """Measures, prints and records, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--folds", type=int, default=10, help="of View 2's ten, from 2 on")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--walk", action="store_true")
    chosen = parser.parse_args()
    if chosen.walk:
        walk()
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        benchmark, pairs, images = lfw(chosen.data, chosen.folds, where)
        for row in chosen.only:
            name, precision = row.split("/")
            try:
                file = exported(chosen.data, where, row)
            except ValueError as error:  # it is not the same model: that is a result, too
                print(f"{row}: {error}", flush=True)
                continue
            size = sum(one.stat().st_size for one in file.parent.iterdir() if one.stem == "model")
            runtime = RUNTIME.get(name, "torch")
            rows.append({
                "network": "mobilefacenet y1", "format": name, "precision": precision, "pairs": str(len(pairs.pairs)),
                **measured(file, benchmark, pairs, images), "megabytes": f"{size / 1e6:.2f}", "machine": machine(),
                "runtime": f"{runtime} {version(runtime)}", "load": load(), "date": today(),
            })  # fmt: skip
            print(rows[-1], flush=True)
    if chosen.folds == 10:
        print(record("export", ["network", "format", "precision", "machine", "runtime"], rows))


if __name__ == "__main__":
    main()
