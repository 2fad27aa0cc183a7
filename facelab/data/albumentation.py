"""albumentations, built from plain lists and drawn from the plan.

The list is written as albumentations itself is: a transform's name and its arguments, in the order in which they act.

    - GaussianBlur: {blur_limit: [3, 7], p: 0.2}
    - OneOf:
        transforms:
          - MotionBlur: {blur_limit: 5}
          - Downscale: {scale_range: [0.3, 0.7]}
        p: 0.3
    - ToGray
"""

import difflib
import inspect
import os
import random
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

__all__ = ["Albumentations"]

_KEY = "data.albumentations"
_CHILDREN = "transforms"
_SHORT = "write the name alone, or {Name: {argument: value}}"


class Albumentations:
    """A list of albumentations transforms whose every draw is a function of a seed.

    Args:
        transforms: names, or mappings of one name to its arguments; a composition's (`OneOf`, `SomeOf`, `Sequential`
            …) `transforms` are such a list again.

    Raises:
        ValueError: where a transform or an argument is unknown, or a value is refused by albumentations.
    """

    def __init__(self, transforms: Sequence[Any]) -> None:
        self.transforms = transforms
        self._library = _imported()
        if isinstance(transforms, (str, Mapping)) or not isinstance(transforms, Sequence) or not transforms:
            raise ValueError(f"{_KEY} is {transforms!r}: give a list of transforms, or null for none")
        self._compose = self._library.Compose([_build(self._library, entry) for entry in transforms])

    def __reduce__(self) -> tuple:
        return type(self), (self.transforms,)

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:
        """Image (H,W,3) uint8 RGB → image of the same shape; the same image and seed give the same result.

        Raises:
            ValueError: when a transform fails on this image, or changes its shape or type.
        """
        # `set_random_seed` would start every transform of the list at the same number: all with p = 0.2 would act on
        # the same images. One generator for all of them, used in turn, has them act independently.
        self._compose.set_random_state(np.random.Generator(np.random.PCG64(seed)), random.Random(seed))
        cv2.setRNGSeed(seed & 0x7FFFFFFF)
        try:
            result = self._compose(image=image)["image"]
        except Exception as error:
            raise ValueError(f"{_KEY} fails on it: {_line(error)}") from error
        _check(result, image)
        return result

    def check(self, image: np.ndarray) -> None:
        """Tries every transform on an image (H,W,3) uint8 RGB, whatever its probability.

        Raises:
            ValueError: when one of them fails, or when what they may do in turn changes the shape or type.
        """
        self._compose.set_random_state(np.random.default_rng(0), random.Random(0))
        for result in self._outcomes(self._compose, [image.copy()]):
            _check(result, image)

    def _outcomes(self, transform: Any, images: Iterable[Any]) -> list[Any]:
        """One image of each shape and type that may come out of a transform, given those that may go in."""
        library, images = self._library, list(images)
        if isinstance(transform, (library.OneOf, library.OneOrOther)):
            done = [image for child in transform.transforms for image in self._outcomes(child, images)]
        elif isinstance(transform, library.SomeOf):
            done = images
            for child in transform.transforms:
                done = _distinct([*done, *self._outcomes(child, done)])
        elif isinstance(transform, (library.Compose, library.Sequential)):
            done = images
            for child in transform.transforms:
                done = self._outcomes(child, done)
        else:
            done = [_apply(transform, image) for image in images]
        return _distinct([*images, *done] if transform.p < 1 else done)


def _imported() -> Any:
    # At its import it asks a server for newer versions. The import takes seconds, so who needs none does none.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    return albumentations


def _build(library: Any, entry: Any) -> Any:
    """A transform of the library from its name and arguments."""
    name: Any = entry
    arguments: Any = {}
    if isinstance(entry, Mapping):
        if len(entry) != 1:
            raise ValueError(f"{_KEY}: {dict(entry)!r} has {len(entry)} names, one is needed: {_SHORT}")
        name, arguments = next(iter(entry.items()))
    if not isinstance(name, str):
        raise ValueError(f"{_KEY}: {entry!r} is no transform: {_SHORT}")
    kind = _find(library, name)
    known = [key for key in inspect.signature(kind).parameters if key not in ("strict", "seed")]
    if isinstance(arguments, (list, tuple)) and _CHILDREN in known:
        arguments = {_CHILDREN: arguments}
    if not isinstance(arguments or {}, Mapping):
        raise ValueError(f"{_KEY}: {name} has the arguments {arguments!r}: {_SHORT}")
    arguments = dict(arguments or {})
    for key in arguments:  # albumentations only warns, and goes on without
        if key not in known:
            near = _nearest(str(key), known)
            raise ValueError(f"{_KEY}: {name} has no argument {key!r}{near}; it has {', '.join(known)}")
    if _CHILDREN in known:
        children = arguments.get(_CHILDREN)
        if not isinstance(children, (list, tuple)) or not children:
            raise ValueError(f"{_KEY}: {name} needs a list of transforms, as {{{name}: {{transforms: […]}}}}")
        arguments[_CHILDREN] = [_build(library, child) for child in children]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # what it merely doubts would be another augmentation than asked
        try:
            return kind(**arguments)
        except Exception as error:
            raise ValueError(f"{_KEY}: {name} refuses its arguments: {_line(error)}") from error


def _find(library: Any, name: str) -> Any:
    bases = (library.BasicTransform, library.BaseCompose)
    abstract = {*bases, library.DualTransform, library.ImageOnlyTransform, library.Transform3D, library.ReplayCompose}
    kinds = {key: kind for key, kind in vars(library).items() if isinstance(kind, type) and issubclass(kind, bases)}
    known = [key for key, kind in kinds.items() if kind not in abstract]
    if name not in known:
        version = library.__version__
        raise ValueError(f"{_KEY}: albumentations {version} has no transform {name!r}{_nearest(name, known)}")
    return kinds[name]


def _nearest(word: str, known: list[str]) -> str:
    lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), lower, n=2, cutoff=0.5)
    return f": did you mean {' or '.join(lower[name] for name in found)}?" if found else ""


def _line(error: BaseException) -> str:
    """An error of albumentations or of pydantic, which lies behind it, as one line."""
    details = getattr(error.__cause__, "errors", None)
    if details is None:
        return " ".join(str(error).split()) or type(error).__name__
    return "; ".join(f"{'.'.join(map(str, part['loc'][:1]))}: {part['msg']}" for part in details())


def _apply(transform: Any, image: Any) -> Any:
    name = type(transform).__name__
    try:
        return transform(image=image, force_apply=True)["image"]
    except Exception as error:
        raise ValueError(f"{_KEY}: {name} cannot be applied to an image alone: {_line(error)}") from error


def _distinct(images: list[Any]) -> list[Any]:
    return list(
        {(getattr(image, "shape", None), str(getattr(image, "dtype", None))): image for image in images}.values()
    )


def _check(result: Any, image: np.ndarray) -> None:
    if not isinstance(result, np.ndarray) or result.dtype != np.uint8:
        kind = getattr(result, "dtype", type(result).__name__)
        raise ValueError(f"{_KEY} makes {kind} of the uint8 image: leave out what converts; the device normalises")
    if result.shape != image.shape:
        raise ValueError(
            f"{_KEY} makes shape {result.shape} of the image's {image.shape}: end the list with a Resize, or leave out "
            "what changes the size"
        )
