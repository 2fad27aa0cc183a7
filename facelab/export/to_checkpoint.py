"""A checkpoint of facelab, which says itself what it is: what published weights become when they are imported."""

from pathlib import Path
from typing import Any

from facelab.export.base import Format, Opened, Runtime, Writing
from facelab.export.networks import open_trained


class Checkpoint(Format):
    """One `.ckpt`, without an optimizer and without a training of its own."""

    suffix = ".ckpt"
    embeds = False

    def reads(self, path: Path) -> bool:
        """Whether its metadata says so; Lightning's and AdaFace's files have this suffix too."""
        from facelab.training.trained import meta_of

        return meta_of(path) is not None

    def write(self, writing: Writing, file: Path) -> None:
        """See `Format.write`; what it says of its training are the defaults, on no identities.

        Raises:
            ValueError: a checkpoint of facelab is to be written once more.
        """
        from facelab.training.checkpoint import save

        about = writing.metadata
        if about["step"] is not None:
            raise ValueError("format=checkpoint imports published weights, and this is a checkpoint of facelab already")
        meta = {
            "step": 0,
            "config": _config(about),
            "num_classes": 0,
            "input": about["input"],
            "imported": {"from": about["checkpoint"], "sha256": about["checkpoint_sha256"]},
        }
        save(file, writing.model, None, meta)

    def open(self, path: Path, runtime: Runtime) -> Opened:
        """See `Format.open`."""
        from facelab.training.trained import meta_of, out_of_checkpoint

        meta = meta_of(path)
        assert meta is not None
        trained = out_of_checkpoint("checkpoint", path, meta, runtime.ema)
        before = meta["config"]
        run = {key: before.get(key) for key in ("name", "job")}
        return open_trained(trained, int(before["data"]["size"]), {"step": meta["step"], "run": run}, runtime)


def _config(about: Any) -> dict[str, Any]:
    """The choices of a run that begins with such a network, and holds nobody out of a training that never was."""
    import hydra
    from omegaconf import OmegaConf

    from facelab.door import configuration_folder

    with hydra.initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        config = hydra.compose("config", ["data.holdout.fraction=0", "job=imported", "name=imported"])
    plain: Any = OmegaConf.to_container(config, resolve=False)
    common = {"weights": None, "input": None, "freeze": 0}
    plain["backbone"] = {**about["backbone"], **common}
    plain["data"]["size"] = about["size"]
    return dict(OmegaConf.to_container(OmegaConf.create(plain), resolve=True))  # type: ignore[arg-type]
