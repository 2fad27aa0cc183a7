"""Who is compared with whom: every enrolment image with every verification image, or all images of one list.

Comparisons of a person with himself are genuine; which of the others count as impostor comparisons is a stated rule:
``all``; ``same_group``, of people of one group only, as NIST compares people of one sex; or ``cross_group``, of people
of different groups.

E enrolment and V verification images; of a single list every image is compared with every later one, E = V.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np

RULES = ("all", "same_group", "cross_group")


class Comparisons:
    """All comparisons of two lists, or of one.

    Args:
        enrol: (E,) int person of each image.
        verify: (V,) int, in the same numbers; None: a single list.
        rule: which impostor comparisons count, one of `RULES`.
        enrol_group: (E,) int group of each image, 0 …; not needed with ``all``.
        verify_group: (V,) int.

    Raises:
        ValueError: an unknown rule, or one that needs groups where there are none.
    """

    def __init__(
        self,
        enrol: np.ndarray,
        verify: np.ndarray | None,
        rule: str = "all",
        enrol_group: np.ndarray | None = None,
        verify_group: np.ndarray | None = None,
    ):
        if rule not in RULES:
            raise ValueError(f"impostors={rule!r}: choose all, same_group or cross_group")
        if rule != "all" and enrol_group is None:
            raise ValueError(f"impostors={rule} needs the groups of the images")
        self.single, self.rule, self.within = verify is None, rule, rule != "cross_group"
        self.enrol = np.asarray(enrol, np.int64)
        self.verify = self.enrol if verify is None else np.asarray(verify, np.int64)
        # `all` is `same_group` of a single group.
        groups = (enrol_group, enrol_group if verify is None else verify_group)
        self.enrol_group, self.verify_group = (
            np.zeros(len(people), np.int64) if rule == "all" or group is None else np.asarray(group, np.int64)
            for people, group in zip((self.enrol, self.verify), groups, strict=True)
        )
        assert len(self.enrol_group) == len(self.enrol), "a group for each image"
        assert len(self.verify_group) == len(self.verify), "a group for each image"
        self.groups = int(max(self.enrol_group.max(initial=0), self.verify_group.max(initial=0))) + 1

    def genuine(self) -> np.ndarray:
        """(G,2) int64 pairs of an enrolment and a verification image of one person, in the order of enrolment."""
        order = np.argsort(self.verify, kind="stable")
        people = self.verify[order]
        first, last = (np.searchsorted(people, self.enrol, side=side) for side in ("left", "right"))
        if self.single:  # the later ones only: a stable order has them behind
            place = np.empty(len(order), np.int64)
            place[order] = np.arange(len(order))
            first = place + 1
        counts = last - first
        enrol = np.repeat(np.arange(len(counts)), counts)
        step = np.arange(len(enrol)) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.stack([enrol, order[first[enrol] + step]], axis=1)

    def impostors(self) -> int:
        """N, how many impostor comparisons count."""
        nobody = np.zeros(len(self.enrol), np.int64), np.zeros(len(self.verify), np.int64)
        return int(self.count(*nobody, 1)[0, 0])

    def count(self, enrol: np.ndarray, verify: np.ndarray, groups: int) -> np.ndarray:
        """(K,K) int64 impostor comparisons that count, by groups of any kind; of a single list it is symmetric.

        Args:
            enrol: (E,) int group of each image, 0 … K−1: not those of the rule, though they may be the same.
            verify: (V,) int.
            groups: K.
        """
        tables = [
            np.bincount(own * groups + group, minlength=self.groups * groups).reshape(self.groups, groups)
            for own, group in ((self.enrol_group, enrol), (self.verify_group, verify))
        ]
        found = tables[0].T @ tables[1]
        if not self.within:
            found = np.outer(tables[0].sum(axis=0), tables[1].sum(axis=0)) - found
        genuine = self.genuine()
        mates = self.cells(genuine[self._counts(genuine)], enrol, verify, groups)
        if not self.single:
            return found - mates
        if self.within:  # an image with itself
            found -= np.diag(tables[0].sum(axis=0))
        found[np.diag_indices(groups)] //= 2
        return found - mates

    def cells(self, pairs: np.ndarray, enrol: np.ndarray, verify: np.ndarray, groups: int) -> np.ndarray:
        """(K,K) int64, how many of some pairs are of which groups; of a single list a pair stands in both its cells.

        Args:
            pairs: (n,2) int, an enrolment and a verification image.
            enrol: see `count`, as for the others.
            verify: see there.
            groups: see there.
        """
        code = enrol[pairs[:, 0]] * groups + verify[pairs[:, 1]]
        found = np.bincount(code, minlength=groups * groups).reshape(groups, groups)
        return found + np.triu(found, 1).T + np.tril(found, -1).T if self.single else found

    def _counts(self, pairs: np.ndarray) -> np.ndarray:
        """Whether the rule would count a pair, were it of two people."""
        return (self.enrol_group[pairs[:, 0]] == self.verify_group[pairs[:, 1]]) == self.within

    def impostor(self, enrol: np.ndarray, verify: np.ndarray) -> np.ndarray:
        """(n,) bool: whether comparisons inside `tiles` are of two people, and, of a single list, not there twice.

        Args:
            enrol: (n,) int images, in the order of `rows`.
            verify: (n,) int, likewise.
        """
        found = self.enrol[self.rows[0][enrol]] != self.verify[self.rows[1][verify]]
        return found & (enrol < verify) if self.single else found

    @cached_property
    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """(E,) and (V,) images in the order in which groups lie together, which is that of `tiles`."""
        return np.argsort(self.enrol_group, kind="stable"), np.argsort(self.verify_group, kind="stable")

    def tiles(self, height: int, width: int) -> np.ndarray:
        """(T,4) int64: from and to which enrolment row, from and to which verification row; in the order of `rows`.

        Together they hold every comparison that the rule counts once, and besides the genuine ones, and what a tile on
        the diagonal of a single list holds twice.
        """
        found = []
        for top, bottom, left, right in self._blocks():
            for one in range(top, bottom, height):
                for other in range(left, right, width):
                    end = min(other + width, right)
                    if not self.single or end > one + 1:
                        found.append((one, min(one + height, bottom), other, end))
        return np.array(found, np.int64).reshape(-1, 4)

    def _blocks(self) -> Iterator[tuple[int, int, int, int]]:
        """Rectangles of groups that the rule counts."""
        ends = np.arange(self.groups + 1)
        enrol = np.searchsorted(np.sort(self.enrol_group), ends).tolist()
        verify = np.searchsorted(np.sort(self.verify_group), ends).tolist()
        for group in range(self.groups):
            own = enrol[group], enrol[group + 1]
            if self.within:
                yield *own, verify[group], verify[group + 1]
                continue
            if not self.single:
                yield *own, 0, verify[group]
            yield *own, verify[group + 1], verify[-1]
