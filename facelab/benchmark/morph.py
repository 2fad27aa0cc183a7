"""Morphed faces: how many are accepted as the people they are made of, and how well a detector finds them.

**Accepted** (Scherhag et al., Biometric Systems under Morphing Attacks, BIOSIG 2017). A morph is compared with probe
images of each of its contributors. The mated morph presentation match rate, MMPMR, is the share of morphs that are
accepted as *all* of their contributors: min over contributors ≥ T. With several probe images of a contributor:

    all      MinMax-MMPMR: a contributor is matched where one of his probes is
    product  ProdAvg-MMPMR: the product over contributors of the share of his probes that are matched
    either   accepted as one contributor at least: not their rate, and never below it

They accept above the threshold, facelab at or above it.

**Detected** (ISO/IEC 30107-3): APCER, the share of attacks that are taken for bona fide, by kind of attack, of which
the worst counts; BPCER, the share of bona fide images that are taken for attacks; D-EER, where the two are equal.

    python -m facelab.benchmark.morph scores.csv
"""

from __future__ import annotations

import argparse
import csv
import math
from pathlib import Path

import numpy as np

from facelab.benchmark.operating_points import allowed_false_accepts, eer

RULES = ("all", "product", "either")


def mmpmr(
    morph: np.ndarray, contributor: np.ndarray, scores: np.ndarray, thresholds: np.ndarray, rule: str
) -> np.ndarray:
    """(T,) share of the morphs that are accepted at each threshold.

    Args:
        morph: (n,) int, which morph was compared.
        contributor: (n,) int, with a probe of which of its contributors.
        scores: (n,) float, higher is more alike; −inf where the morph or the probe has no embedding.
        thresholds: (T,).
        rule: ``all``, ``product`` or ``either``, see above.

    Raises:
        ValueError: nothing to compare, scores that are NaN, an unknown rule.
    """
    check_rule(rule)
    scores = np.asarray(scores, np.float64)
    if not len(scores):
        raise ValueError("no comparison of a morph with a contributor: give a list of morphs and their contributors")
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).sum())} of {len(scores)} scores of morphs are NaN")
    pairs, own = np.unique(np.stack([morph, contributor], axis=1), axis=0, return_inverse=True)
    own = own.reshape(-1)
    first = np.flatnonzero(np.diff(pairs[:, 0], prepend=pairs[0, 0] - 1))  # where a morph's contributors begin
    accepted = scores[:, None] >= np.asarray(thresholds, np.float64)
    matched = np.stack([np.bincount(own, column, len(pairs)) for column in accepted.T], axis=1)  # (contributors, T)
    if rule == "product":
        return np.multiply.reduceat(matched / np.bincount(own)[:, None], first, axis=0).mean(axis=0)
    combine = np.logical_and if rule == "all" else np.logical_or
    return combine.reduceat(matched > 0, first, axis=0).mean(axis=0)


def check_rule(rule: str) -> None:
    """Raises ValueError unless ``rule`` is one of `RULES`."""
    if rule not in RULES:
        raise ValueError(f"morph_rule={rule!r}: choose all (MMPMR), product (ProdAvg-MMPMR) or either")


def apcer_at_bpcer(attack: np.ndarray, bona_fide: np.ndarray, bpcer: float) -> tuple[float, float]:
    """The lowest threshold with BPCER ≤ target, and the APCER there.

    Args:
        attack: (A,) scores; at or above the threshold an image is called an attack.
        bona_fide: (B,) scores.
        bpcer: target.
    """
    allowed = allowed_false_accepts(bpcer, len(bona_fide))
    threshold = -math.inf if allowed >= len(bona_fide) else np.nextafter(np.sort(bona_fide)[::-1][allowed], math.inf)
    return float(threshold), float(np.mean(attack < threshold))


def bpcer_at_apcer(attack: np.ndarray, bona_fide: np.ndarray, apcer: float) -> tuple[float, float]:
    """The highest threshold with APCER ≤ target, and the BPCER there: at 10, 5 and 1 % BPCER10, BPCER20 and BPCER100.

    Args:
        attack: (A,) scores, see `apcer_at_bpcer`.
        bona_fide: (B,) scores.
        apcer: target.
    """
    allowed = allowed_false_accepts(apcer, len(attack))
    threshold = math.inf if allowed >= len(attack) else np.sort(attack)[allowed]
    return float(threshold), float(np.mean(bona_fide >= threshold))


def detection_errors(scores: np.ndarray, attack: np.ndarray, kind: np.ndarray | None = None) -> dict[str, float]:
    """D-EER, BPCER at APCER 10, 5 and 1 %, and APCER at BPCER 10, 5 and 1 %; of several kinds of attack the worst.

    Args:
        scores: (n,), higher is more suspicious.
        attack: (n,) bool.
        kind: (n,) kind of each attack; None: one kind.

    Returns:
        ``d_eer``, ``bpcer@apcer=1e-1`` …, and with several kinds each of them as ``<kind>/d_eer`` … too.

    Raises:
        ValueError: scores that are not finite, or none of a sort.
    """
    scores, attack = np.asarray(scores, np.float64), np.asarray(attack, bool)
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} detection scores are not finite")
    if attack.all() or not attack.any():
        raise ValueError(
            f"{int(attack.sum())} attacks and {int((~attack).sum())} bona fide images: both sorts are needed"
        )
    bona_fide = scores[~attack]
    kinds = np.zeros(len(scores), int) if kind is None else np.asarray(kind)
    found = {str(one): _errors(scores[attack & (kinds == one)], bona_fide) for one in np.unique(kinds[attack])}
    worst = {key: max(errors[key] for errors in found.values()) for key in next(iter(found.values()))}
    if len(found) == 1:
        return worst
    return worst | {f"{name}/{key}": value for name, errors in found.items() for key, value in errors.items()}


def _errors(attack: np.ndarray, bona_fide: np.ndarray) -> dict[str, float]:
    targets = {"1e-1": 0.1, "5e-2": 0.05, "1e-2": 0.01}
    return {
        "d_eer": eer(attack, bona_fide),
        **{f"bpcer@apcer={name}": bpcer_at_apcer(attack, bona_fide, rate)[1] for name, rate in targets.items()},
        **{f"apcer@bpcer={name}": apcer_at_bpcer(attack, bona_fide, rate)[1] for name, rate in targets.items()},
    }


def read_detection(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores (n,), whether attack (n,), kind (n,) of a CSV file with columns ``score``, ``label`` and maybe ``kind``.

    A label is ``morph`` (or ``attack``) or ``bona_fide``; a kind is any word, of attacks alone.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no such columns, or cells that cannot be read: all lines are named, up to ten.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of scores; give a CSV file with the columns score and label")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        rows, columns = list(reader), reader.fieldnames or []
    if not {"score", "label"} <= set(columns):
        raise ValueError(f"{path}: its first line must name the columns score and label, it names {', '.join(columns)}")
    labels = {"morph": True, "attack": True, "bona_fide": False}
    scores = np.array([_number(row["score"]) for row in rows])
    wrong = [
        number
        for number, (row, score) in enumerate(zip(rows, scores, strict=True), 2)
        if row["label"] not in labels or not math.isfinite(score)
    ]
    if wrong:
        named = ", ".join(map(str, wrong[:10])) + (", …" if len(wrong) > 10 else "")
        raise ValueError(f"{path}: lines {named} have no number as score, or another label than morph or bona_fide")
    attack = np.array([labels[row["label"]] for row in rows], bool)
    return scores, attack, np.array([row.get("kind") or "attack" for row in rows], str)


def _number(cell: str | None) -> float:
    try:
        return float(cell or "nan")
    except ValueError:
        return math.nan


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="facelab.benchmark.morph", description="Detection errors of a CSV file: score (higher: a morph), label."
    )
    parser.add_argument("scores", type=Path, help="columns score, label (morph or bona_fide), and maybe kind")
    try:
        found = detection_errors(*read_detection(parser.parse_args().scores))
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from error
    for name, value in found.items():
        print(f"{name:32} {100 * value:.2f} %")


if __name__ == "__main__":
    main()
