"""Drawn faces of one group alone: people whose skin lies within a range, for experiments on who is trained on."""

from collections.abc import Sequence

from facelab.data.synthetic import SyntheticFaces, melanin

__all__ = ["SkinGroup"]

_TRIES = 1000  # people looked at for each that is wanted


class SkinGroup(SyntheticFaces):
    """The first people of the population whose skin lies within a range.

    Skin is the one trait of drawn people that could be called a group. What tells people apart, the proportions, has
    the same distribution in all; but how much the lines that show it stand out depends on the skin they are drawn on.

    Args:
        identities: number of persons C, at least 2.
        images_per_identity: as of `SyntheticFaces`.
        size: as of `SyntheticFaces`.
        nuisance: as of `SyntheticFaces`.
        skin: lowest and highest melanin, from 0 (fair) to 1 (dark); a person of two ranges is in both groups.
        seed: of the population. Nobody of one seed is in the population of another.

    Raises:
        ValueError: if an argument is out of range, or there are no such people.
    """

    def __init__(
        self, identities: int, images_per_identity: int, size: int, nuisance: float, skin: Sequence[float], seed: int
    ) -> None:
        super().__init__(identities, images_per_identity, size, 1, nuisance, seed)
        low, high = skin if len(skin) == 2 else (1, 0)
        if not 0 <= low < high <= 1:
            raise ValueError(f"data.skin is {list(skin)}: give lowest and highest melanin, as [0.0, 0.35]")
        self._own_arguments = (identities, images_per_identity, size, nuisance, tuple(skin), seed)
        people = (number for number in range(_TRIES * identities) if low <= melanin(seed, number) <= high)
        self._people = [number for number, _ in zip(people, range(identities), strict=False)]
        if len(self._people) < identities:
            raise ValueError(
                f"data.skin is {list(skin)}: only {len(self._people):,} of {_TRIES * identities:,} people have such "
                "skin; give a wider range, or fewer identities"
            )
        self.identity_names = [f"person {number}" for number in self._people]

    def __reduce__(self) -> tuple:
        return type(self), self._own_arguments

    def _number(self, identity: int) -> int:
        return self._people[identity]
