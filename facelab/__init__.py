"""facelab: controlled experiments in face recognition."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from facelab.verify.recogniser import load_model as load_model

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`from facelab import load_model`, which brings numpy, OpenCV and a runtime along; nothing else here does."""
    if name == "load_model":
        from facelab.verify.recogniser import load_model

        return load_model
    raise AttributeError(f"module 'facelab' has no attribute {name!r}")
