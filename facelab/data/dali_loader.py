"""DALI decodes; which images, in which order and with which draws, stays ours: the batches are TrainLoader's.

DALI's own readers shuffle a window of the set and pass shards from rank to rank, so that nobody could say what a batch
holds. Here threads read the encoded images that the plan names, and a pipeline of two operators, an input and a
decoder, makes pixels of them: on the CPU, or with a GPU on both, and then the batch stays on the device. Mirror, shift
and all that follows are the same modules with the same draws as with any loader.

Pixels: DALI gets 8-bit JPEGs of three colours or grey, without EXIF and of the set's size. All other images (PNG, WebP,
CMYK, EXIF, another size …) are decoded as TrainLoader decodes them and put in their places. On a CPU DALI 2.4 gives
the very bytes that libjpeg-turbo gives here, for every quality and subsampling tried and for 15,360 faces of CelebA;
TOLERANCE is what is promised of other versions. On a GPU nvJPEG rounds otherwise, by how much has not been measured.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg
import torch

from facelab.data.torch_loader import Batch, Chosen, TrainLoader, _decode
from facelab.pixels import is_plain_jpeg

__all__ = ["TOLERANCE", "DaliLoader", "check_installed"]

TOLERANCE = 2  # levels of 255 by which a pixel may differ from TrainLoader's, on a CPU
_READ_AHEAD = 2  # batches being read beyond those that DALI has
_COLOURS = ("YCbCr", "Gray")  # of JPEGs that DALI decodes as libjpeg-turbo does


def check_installed() -> None:
    """Asks for DALI, which few need and which is large.

    Raises:
        ValueError: when it is not there, saying how to install it.
    """
    try:
        import nvidia.dali  # noqa: F401
    except (ImportError, OSError) as error:
        raise ValueError(
            f"data.loader=dali needs NVIDIA's DALI, which cannot be imported here ({error}): pip install "
            "'facelab[dali]' (Linux only), or leave data.loader=torch"
        ) from None


class DaliLoader(TrainLoader):
    """TrainLoader's batches, decoded by DALI: labels, draws and indices are equal, pixels within TOLERANCE.

    With `pin`, JPEGs are decoded by CPU and GPU together ("mixed") and `images` lie on the current CUDA device. A
    pipeline lives as long as an iterator of this loader, and is made anew wherever one starts, so that a position is
    absolute here too.

    Args:
        source: a data set of image files: `encoded(index)` beside `load` and `size`.
        subset, labels, plan, seed, draws, start, stop, rank, world: as TrainLoader's.
        threads: DALI's threads, and as many that read files.
        prefetch: batches decoded ahead of the one being consumed.
        pin: decode on the current CUDA device.

    Raises:
        ValueError: as TrainLoader; where DALI is not installed; where the source has no files. While iterating: when an
            image cannot be loaded, naming it as TrainLoader does.
    """

    def __init__(
        self,
        source: Any,
        subset: np.ndarray,
        labels: np.ndarray,
        plan: Any,
        seed: int,
        draws: int,
        start: int,
        stop: int,
        rank: int,
        world: int,
        threads: int,
        prefetch: int,
        pin: bool,
    ) -> None:
        check_installed()
        if not hasattr(source, "encoded"):
            raise ValueError(
                f"data.loader=dali decodes image files, and {type(source).__name__} has none: leave data.loader=torch"
            )
        super().__init__(source, subset, labels, plan, seed, draws, start, stop, rank, world, threads, prefetch, pin)

    def __iter__(self) -> Iterator[Batch]:
        for start, stop in self._stretches():
            yield from self._decoded(self._choose(start, stop))

    def _decoded(self, chosen: Iterable[Chosen]) -> Iterator[Batch]:
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="facelab-read")
        inputs = _Inputs(self.source, chosen, pool, self.threads)
        pipeline = None
        try:
            pipeline = self._pipeline(inputs)
            while True:
                try:
                    (decoded,) = pipeline.run()
                except StopIteration:
                    break
                except RuntimeError as error:
                    raise self._explained(inputs.sent[0].chosen.indices, error) from error
                yield _batch(inputs.sent.popleft(), decoded)
            if inputs.failure is not None:
                raise inputs.failure
        finally:
            del pipeline  # before the bytes that it reads
            pool.shutdown(wait=True, cancel_futures=True)

    def _pipeline(self, inputs: "_Inputs") -> Any:
        from nvidia.dali import fn, types
        from nvidia.dali.pipeline import Pipeline

        pipeline = Pipeline(
            batch_size=self.plan.batch_size // self.world,
            num_threads=self.threads,
            device_id=torch.cuda.current_device() if self.pin else None,
            prefetch_queue_depth=self.prefetch + 1,  # the one being consumed is among them
        )
        with pipeline:
            encoded = fn.external_source(
                source=inputs.next, batch=True, no_copy=True, dtype=types.DALIDataType.UINT8, ndim=1
            )
            pixels = fn.decoders.image(
                encoded,
                device="mixed" if self.pin else "cpu",
                output_type=types.DALIImageType.RGB,
                adjust_orientation=False,  # images with EXIF do not come here
                jpeg_fancy_upsampling=True,  # on a GPU too, as libjpeg-turbo
                affine=False,  # several processes of a machine would sit on the same cores
            )
            pipeline.set_outputs(pixels)
        return pipeline

    def _explained(self, indices: np.ndarray, error: Exception) -> Exception:
        """What is wrong with a batch that DALI refuses: it names a place in the batch, at best."""
        size = self.source.size
        try:
            _decode(self.source, indices, np.empty((len(indices), size, size, 3), np.uint8))
        except ValueError as ours:
            return ours
        lines = [line.strip() for line in str(error).splitlines() if "pipeline" not in line and line.strip()]
        return ValueError(
            f"DALI fails on images that can all be read without it ({lines[-1] if lines else error}): the same command "
            "with data.loader=torch goes on from the last checkpoint"
        )


class _Read(NamedTuple):
    """A slice of a batch, or all of it."""

    files: list[np.ndarray]  # encoded, what DALI decodes
    places: list[int]  # whose pixels are not DALI's
    pixels: list[np.ndarray]  # theirs, (H,W,3) uint8


class _Sent(NamedTuple):
    """A batch that DALI has: nothing is copied, so the bytes have to stay until it is done."""

    chosen: Chosen
    read: _Read


class _Inputs:
    """Encoded images, read ahead by threads, and what DALI does not carry.

    Attributes:
        sent: the batches that DALI has asked for and not given back.
        failure: what ended the reading; the batches before it are sound.
    """

    def __init__(self, source: Any, chosen: Iterable[Chosen], pool: ThreadPoolExecutor, threads: int) -> None:
        self.source, self.pool, self.threads = source, pool, threads
        self.sent: deque[_Sent] = deque()
        self.failure: ValueError | None = None
        self._chosen = iter(chosen)
        self._reading: deque[tuple[Chosen, list[Future[_Read]]]] = deque()
        black = np.zeros((source.size, source.size, 3), np.uint8)
        self._filler = cv2.imencode(".jpg", black)[1].ravel()  # where pixels are not DALI's

    def next(self) -> list[np.ndarray]:
        """Files of the next batch; DALI asks for them, in the consumer's thread.

        Raises:
            StopIteration: there is none, or it cannot be read.
        """
        for chosen in self._chosen:
            self._reading.append((chosen, self._start(chosen.indices)))
            if len(self._reading) > _READ_AHEAD:
                break
        if not self._reading:
            raise StopIteration
        chosen, slices = self._reading.popleft()
        files: list[np.ndarray] = []
        places: list[int] = []
        pixels: list[np.ndarray] = []
        for part in slices:
            try:
                read = part.result()
            except ValueError as error:
                self.failure = error
                raise StopIteration from None
            places += [len(files) + place for place in read.places]
            pixels += read.pixels
            files += read.files
        self.sent.append(_Sent(chosen, _Read(files, places, pixels)))
        return files

    def _start(self, indices: np.ndarray) -> list[Future[_Read]]:
        bounds = [len(indices) * part // self.threads for part in range(self.threads + 1)]
        slices = [indices[first:end].tolist() for first, end in pairwise(bounds) if first < end]
        return [self.pool.submit(self._read, part) for part in slices]

    def _read(self, indices: list[int]) -> _Read:
        read, size = _Read([], [], []), self.source.size
        for place, index in enumerate(indices):
            try:
                encoded = self.source.encoded(index)
                alike = _decodes_alike(encoded, size)
            except Exception:  # loading it will say what is wrong
                alike = False
            if not alike:
                pixels = np.empty((1, size, size, 3), np.uint8)
                _decode(self.source, np.array([index]), pixels)
                read.places.append(place)
                read.pixels.append(pixels[0])
                encoded = self._filler
            read.files.append(encoded)
        return read


def _decodes_alike(encoded: np.ndarray, size: int) -> bool:
    """Whether DALI makes the same pixels (size,size,3) of a file as `facelab.pixels.decode`, by its header."""
    if not is_plain_jpeg(encoded):
        return False
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:
        return False
    return (height, width) == (size, size) and colours in _COLOURS


def _batch(sent: _Sent, decoded: Any) -> Batch:
    """A batch from what DALI has made of it, without a copy."""
    images = torch.from_dlpack(decoded.as_tensor())
    chosen, read = sent
    if read.places:
        images[read.places] = torch.from_numpy(np.stack(read.pixels)).to(images.device)
    labels, draws, indices = (torch.from_numpy(part) for part in (chosen.labels, chosen.draws, chosen.indices))
    return Batch(images, labels, draws, indices)
