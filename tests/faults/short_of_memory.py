"""A source that travels to other processes, which import this module and no more."""

import numpy as np


class Short:
    """For whose image 17 there is no memory."""

    size = 8
    labels = np.zeros(40, np.int64)

    def __len__(self) -> int:
        return 40

    def load(self, index: int, out: np.ndarray | None = None) -> np.ndarray:
        """Image (8,8,3)."""
        if index == 17:
            raise MemoryError
        return np.zeros((8, 8, 3), np.uint8)
