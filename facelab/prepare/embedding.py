"""Embeddings of a set's images by a model that was trained before: what tells that two sets have a person in common."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from facelab.benchmark.pair_files import read_bin
from facelab.digest import digest_of
from facelab.prepare.existing import open_set
from facelab.tracking import track

__all__ = ["Embedder", "Gallery", "by_identity", "read_gallery"]


class Embedder:
    """A network and how it is run.

    Attributes:
        about: the model, in words.
        digest: SHA-256 of its file.
        described: all that an embedding depends on besides its image, in one word.

    Args:
        model: a checkpoint of facelab, or published weights.
        network: which network published weights are of, a name of conf/backbone; null with a checkpoint.
        size: pixels of the images, H = W.
        batch_size: images at once.
        accelerator: auto, cpu, gpu.
        precision: auto, bf16, fp32.
        threads: decoding threads.
        progress: whether to show how far it is.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none of these, or was trained on images of another size.
    """

    def __init__(
        self,
        model: str,
        network: str | None,
        size: int,
        batch_size: int,
        accelerator: str,
        precision: str,
        threads: int,
        progress: bool,
    ):
        import torch
        from torch import nn

        from facelab.training.options import EvaluationOptions
        from facelab.training.trained import file_of, meta_of, out_of_checkpoint, out_of_weights

        self.options = EvaluationOptions(batch_size, accelerator, precision, progress)
        self.threads = threads
        path = file_of("model", model)
        meta = meta_of(path)
        if meta is None:
            trained = out_of_weights("model", path, _node(network, size), "network", None)
        elif network is not None:
            raise ValueError(f"model={path} says itself which network it is of: leave network={network} out")
        else:
            trained = out_of_checkpoint("model", path, meta, None)
            if meta["config"]["data"]["size"] != size:
                taken = meta["config"]["data"]["size"]
                raise ValueError(f"model={path} takes images of {taken} pixels, but the sets have {size}: size={taken}")
        self.network: Any = nn.Sequential(trained.backbone, trained.head).eval()
        self.about, self.digest = trained.about, digest_of(path)
        how = ("cuda" if self.options.on_gpu else "cpu", "bf16" if self.options.in_bf16 else "fp32", batch_size, size)
        self.described = " ".join(map(str, (self.digest, network, *how, torch.__version__)))

    def __call__(self, images: Any, what: str) -> Iterator[np.ndarray]:
        """Unit embeddings (b,D) float32 of all images in their order, of image and mirrored image summed; in batches.

        Args:
            images: anything with a length and `load(index, out)`.
            what: is being done, in front of the bar.
        """
        import torch

        from facelab.data.torch_loader import EvalLoader
        from facelab.training.module import embed

        options = self.options
        device = torch.device("cuda" if options.on_gpu else "cpu")
        network = self.network.to(device)
        loader = EvalLoader(images, options.batch_size, 0, 1, self.threads, prefetch=2, pin=options.on_gpu)
        for batch in track(loader, len(images), what, options.progress):
            half = torch.autocast(device.type, torch.bfloat16) if options.in_bf16 else nullcontext()
            with torch.inference_mode(), half:
                rows = embed(network, batch.images.to(device, non_blocking=True), mirror=True)
                rows = torch.nn.functional.normalize(rows.float())
            yield rows.cpu().numpy()


def _node(network: str | None, size: int) -> Any:
    """The `backbone` node of a name; None without one."""
    from omegaconf import OmegaConf

    from facelab.door import configuration_folder

    if network is None:
        return None
    folder = configuration_folder() / "backbone"
    known = sorted(file.stem for file in folder.glob("*.yaml"))
    node = OmegaConf.load(folder / f"{network}.yaml") if network in known else None
    if node is None or "defaults" in node:
        raise ValueError(f"network={network}: give the network that the weights are of, one of {', '.join(known)}")
    return OmegaConf.create({"backbone": node, "data": {"size": size}}).backbone


class Gallery:
    """A test set whose people must not be trained on: T images.

    Args:
        images: anything with a length, `load` and `name`.
        embeddings: (T,D) unit rows.
    """

    def __init__(self, images: Any, embeddings: np.ndarray):
        self.images, self.embeddings = images, embeddings

    def nearest(self, centre: np.ndarray) -> tuple[float, str]:
        """The highest cosine of a unit vector (D,) with an image, and which that is."""
        scores = self.embeddings @ centre
        best = int(np.argmax(scores))
        return float(scores[best]), self.images.name(best)


class _Pairs:
    """The images of a `.bin`."""

    def __init__(self, path: Path, size: int):
        self._pairs = read_bin(path, path.stem, 10, size)
        self._name = path.name

    def __len__(self) -> int:
        return len(self._pairs)

    def load(self, index: int, out: np.ndarray | None = None) -> np.ndarray:
        return self._pairs.load(index, out)

    def name(self, index: int) -> str:
        return f"{self._name}, image {index}"


def read_gallery(against: str, size: int) -> Any:
    """The images of a test set.

    Args:
        against: a `.bin`, a folder of people such as lfw/images, or a pack.
        size: pixels, H = W.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is no such set.
    """
    path = Path(against).expanduser()
    if path.suffix == ".bin" and path.is_file():
        return _Pairs(path, size)
    if not path.is_dir():
        raise FileNotFoundError(f"against={against}: no such .bin or folder; give the test set, such as lfw/images")
    return open_set(against, size)


def by_identity(labels: np.ndarray, batches: Iterator[np.ndarray]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Label, positions (n,) and embeddings (n,D) of each identity; only one identity's are held at a time.

    Args:
        labels: (N,), of an identity together.
        batches: the N embeddings, in the same order.
    """
    begins = np.flatnonzero(np.diff(labels, prepend=-1))
    ends = np.append(begins[1:], len(labels))
    held: list[np.ndarray] = []
    there = 0
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        while there < end - begin:
            held.append(next(batches))
            there += len(held[-1])
        rows = np.concatenate(held)
        yield int(labels[begin]), np.arange(begin, end), rows[: end - begin]
        held = [rows[end - begin :]]
        there = len(held[0])
