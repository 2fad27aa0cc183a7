"""What a study is told, checked before it begins; each value is explained in conf/quality.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, get_type_hints

from facelab.quality.qmagface import SCALES
from facelab.training.options import check_kind

FIXED, REDERIVED = "fixed", "rederived"


class _Checked:
    """Compares the kinds of its fields, under the name of its group."""

    group: ClassVar[str]

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Any:
        """Out of a group of the configuration; keys that belong to others are left."""
        kinds = get_type_hints(cls)
        known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        for name in known:
            check_kind(f"{cls.group}.{name}", given[name], kinds[name])
        made = cls(**{name: given[name] for name in known})
        made.check()
        return made

    def check(self) -> None:
        """Refuses values out of their range."""
        raise NotImplementedError

    def within(self, name: str, low: float, high: float, usual: str) -> None:
        """Refuses one outside low … high."""
        value = getattr(self, name)
        if not low <= value <= high:
            raise ValueError(f"{self.group}.{name} is {value}: give a number from {low:g} to {high:g}; {usual}")


@dataclass(frozen=True)
class StudyOptions(_Checked):
    """`study`."""

    group = "study"
    smallest: int
    nearest: int
    brisque: bool
    replicates: int
    seed: int

    def check(self) -> None:
        """See above."""
        self.within("smallest", 2, 10**6, "5 is usual, since one image has no spread")
        self.within("nearest", 0, 10**6, "5 is usual, 0 takes the population")
        self.within("replicates", 1, 10**6, "1,000 is usual")
        self.within("seed", 0, 2**63, "any")


@dataclass(frozen=True)
class DiscardOptions(_Checked):
    """`discard`."""

    group = "discard"
    threshold: str
    start: float
    far: float
    limit: float
    steps: int

    def check(self) -> None:
        """See above."""
        if self.threshold not in (FIXED, REDERIVED):
            raise ValueError(f"discard.threshold is {self.threshold!r}: give {FIXED} or {REDERIVED}")
        self.within("start", 0, 1, "0.05 is usual")
        self.within("far", 0, 1, "0.001 is usual")
        self.within("limit", 1e-6, 0.99, "0.2 is usual")
        self.within("steps", 1, 10**6, "40 is usual")


@dataclass(frozen=True)
class FitOptions(_Checked):
    """`qmagface`."""

    group = "qmagface"
    lowest: float
    highest: float
    scale: str

    def check(self) -> None:
        """See above."""
        if self.scale not in SCALES:
            raise ValueError(f"qmagface.scale is {self.scale!r}: give one of {', '.join(SCALES)}")
        if not 0 < self.lowest < self.highest < 1:
            raise ValueError(
                f"qmagface.lowest is {self.lowest:g} and qmagface.highest {self.highest:g}: give two false match "
                "rates, rising, between 0 and 1"
            )


@dataclass(frozen=True)
class OutlierOptions(_Checked):
    """`outliers`."""

    group = "outliers"
    folder: str | None
    count: int

    def check(self) -> None:
        """See above."""
        self.within("count", 2, 10**7, "500 is usual")
