"""A checkpoint of facelab, which says itself what it is: what published weights become when they are imported."""

from pathlib import Path

from facelab.export.base import Format, Opened, Runtime
from facelab.export.networks import open_trained


class Checkpoint(Format):
    """One `.ckpt`, without an optimizer."""

    suffix = ".ckpt"
    embeds = False

    def reads(self, path: Path) -> bool:
        """Whether its metadata says so; Lightning's and AdaFace's files have this suffix too."""
        from facelab.training.trained import meta_of

        return meta_of(path) is not None

    def open(self, path: Path, runtime: Runtime) -> Opened:
        """See `Format.open`."""
        from facelab.training.trained import meta_of, out_of_checkpoint

        meta = meta_of(path)
        assert meta is not None
        trained = out_of_checkpoint("checkpoint", path, meta, runtime.ema)
        before = meta["config"]
        run = {key: before.get(key) for key in ("name", "job")}
        return open_trained(trained, int(before["data"]["size"]), {"step": meta["step"], "run": run}, runtime)
