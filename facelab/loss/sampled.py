"""Which classes take part in a step: drawn by a hash of (seed, step, class), so the same on any number of ranks."""

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9  # 2^32 / golden ratio


def draw(start: int, stop: int, rate: float, seed: int, step: int, device: torch.device) -> Tensor:
    """Draw each class of start … stop − 1 by itself with the probability ``rate``.

    The number drawn of n classes is n·rate, give or take sqrt(n·rate): the price of a draw that asks no other class.

    Args:
        start: first class, in the numbering of all ranks.
        stop: one past the last.
        rate: in (0, 1].
        seed: any integer.
        step: the same step draws the same classes.
        device: where the answer is wanted.

    Returns:
        (stop − start,) bool.
    """
    key = _mix_number(_mix_number(seed & _WORD) ^ _mix_number((seed >> 32) & _WORD ^ _GOLDEN))
    key = _mix_number(key + step * _GOLDEN)
    words = torch.arange(start, stop, device=device)
    # Hashed twice, the key between: two steps are then not the same draw with classes renamed in pairs.
    _mix(words.bitwise_and_(_WORD))
    _mix(words.add_(key).bitwise_and_(_WORD))
    return words < rate * (_WORD + 1)


def _mix_number(word: int) -> int:
    """The 32-bit finaliser "lowbias32" of C. Wellons, a bijection."""
    word &= _WORD
    word = ((word ^ (word >> 16)) * 0x7FEB352D) & _WORD
    word = ((word ^ (word >> 15)) * 0x846CA68B) & _WORD
    return word ^ (word >> 16)


def _mix(words: Tensor) -> None:
    """The same of int64 words below 2^32, in place; a product that overflows 64 bits keeps its lower 32."""
    words.bitwise_xor_(words >> 16).mul_(0x7FEB352D).bitwise_and_(_WORD)
    words.bitwise_xor_(words >> 15).mul_(0x846CA68B).bitwise_and_(_WORD)
    words.bitwise_xor_(words >> 16)
