"""facelab: controlled experiments in face recognition."""

__version__ = "0.1.0"
