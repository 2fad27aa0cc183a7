"""How batches come about: what conf/data/loader chooses between."""

from typing import Any

from facelab.data.albumentation import Albumentations
from facelab.data.dali_loader import DaliLoader, check_installed
from facelab.data.process_loader import ProcessLoader
from facelab.data.torch_loader import EvalLoader, TrainLoader

__all__ = ["Dali", "Loading", "Torch"]


class Loading:
    """A way to make batches.

    Args:
        threads: decoding threads of each process.
        prefetch: batches decoded ahead.
    """

    def __init__(self, threads: int, prefetch: int) -> None:
        self.threads, self.prefetch = threads, prefetch

    def training(self, transforms: Albumentations | None, **what: Any) -> TrainLoader:
        """The batches of a plan.

        Args:
            transforms: what is done to each image on the CPU, beyond what the device does.
            what: source, subset, labels, plan, seed, draws, start, stop, rank, world and pin, as TrainLoader's.

        Raises:
            ValueError: when such batches cannot be made.
        """
        raise NotImplementedError

    def evaluation(self, images: Any, batch_size: int, rank: int, world: int, pin: bool) -> EvalLoader:
        """Every image once; threads decode, whatever trains: scores never depend on it. See EvalLoader."""
        return EvalLoader(images, batch_size, rank, world, threads=self.threads, prefetch=self.prefetch, pin=pin)


class Torch(Loading):
    """Threads decode with libjpeg-turbo; where albumentations are given, processes decode and augment.

    Args:
        threads: decoding threads of each process.
        prefetch: batches decoded ahead.
        processes: how many take the threads' place where albumentations are given.
    """

    def __init__(self, threads: int, prefetch: int, processes: int) -> None:
        super().__init__(threads, prefetch)
        self.processes = processes

    def training(self, transforms: Albumentations | None, **what: Any) -> TrainLoader:
        """See Loading."""
        if transforms is None:
            return TrainLoader(threads=self.threads, prefetch=self.prefetch, **what)
        return ProcessLoader(transforms, self.processes, prefetch=self.prefetch, **what)


class Dali(Loading):
    """DALI decodes the training images, with a GPU on it: see dali_loader.py.

    Args:
        threads: DALI's threads of each process, and as many that read files.
        prefetch: batches decoded ahead.

    Raises:
        ValueError: when DALI is not installed.
    """

    def __init__(self, threads: int, prefetch: int) -> None:
        super().__init__(threads, prefetch)
        check_installed()

    def training(self, transforms: Albumentations | None, **what: Any) -> TrainLoader:
        """See Loading."""
        if transforms is not None:
            raise ValueError(
                "data.loader=dali gives images to the device as they are, and data.albumentations changes them before: "
                "give data.loader=torch, or use data/augment and data/degrade, which are the device's work"
            )
        return DaliLoader(threads=self.threads, prefetch=self.prefetch, **what)
