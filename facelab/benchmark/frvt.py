"""Verification as NIST's FRVT (now FRTE) reports it: FNMR where FMR is a target, by group, failures to enrol counted.

Of any list of images (`facelab.benchmark.image_list`): every enrolment image is compared with every verification image,
and thresholds are exact however many comparisons that are (`facelab.benchmark.impostors`). NIST compares all only for
visa photographs; its mugshot, wild and border numbers are of chosen comparisons of images that are not public.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from facelab.benchmark.bootstrap import per_subject
from facelab.benchmark.comparisons import RULES, Comparisons
from facelab.benchmark.enrolment import compare, enrol
from facelab.benchmark.identification import Searches
from facelab.benchmark.image_list import ImageList, read_list
from facelab.benchmark.impostors import Tail, largest, needed, sample_scores
from facelab.benchmark.morph import check_rule, mmpmr
from facelab.benchmark.operating_points import allowed_false_accepts
from facelab.benchmark.pairs import short
from facelab.benchmark.scores import CountedResult
from facelab.benchmark.streaming import Progress
from facelab.benchmark.verification import Bootstrap, Genuine, det_curve, fmr_intervals, fnmr, group_tables

KEPT = 2**20  # impostor scores that are kept at least: with no more of them, everything is exact
SAMPLED = 2048  # images of either side whose comparisons show the rest of the DET curve
FAILURES = ("listed", "unreadable", "zero")
DRAWN = 2**17  # impostor scores that are kept for a histogram
CMC = 20  # ranks that are kept


class FrvtBenchmark:
    """FNMR at FMR targets over all comparisons of a list.

    The score is the cosine of the embeddings, embed(image) + embed(mirrored image) where `mirror` says so. A failure to
    enrol counts against the model: its genuine comparisons are false non-matches at every threshold; impostor
    comparisons are those of enrolled images, so that nothing is gained by refusing.

    Args:
        name: first part of the metric keys.
        path: the folder of the images.
        list: the CSV file that names them, see `facelab.benchmark.image_list`; null: ``<path>/images.csv``.
        fmr: false match rates to report FNMR at.
        impostors: which impostor comparisons count: ``all``, ``same_group``, ``cross_group``.
        group: the column of these groups.
        by: columns whose groups are reported on, each with a cross-group matrix.
        failures: what counts as a failure to enrol, and is an error otherwise: ``listed`` in the column failed,
            ``unreadable`` images, embeddings that are ``zero``.
        morphs: a CSV file of morphs and their contributors; null: none.
        morph_rule: see `facelab.benchmark.morph`.
        fpir: false positive identification rates to report FNIR at; empty: no 1:N search.
        rank: the mate is to be among so many candidates.
        bootstrap: replicates of the 95 % intervals over people; 0: no intervals.
        seed: of these, and of the sample behind the DET curve.
        mirror: whether the caller adds the mirrored image's embedding; part of the stamp.
        size: image size handed to the network, pixels.
        device: where scores are computed: ``auto``, ``cpu`` or ``cuda``.
        state: a file from which long work goes on after a kill; null: none.

    Attributes:
        evaluates_only: it measures checkpoints, and does not belong to a training.
        tells_progress: `evaluate` takes ``progress``.

    Raises:
        ValueError: a setting out of range.
    """

    evaluates_only = True
    tells_progress = True

    def __init__(
        self,
        name: str,
        path: str | None,
        list: str | None,
        fmr: Sequence[float],
        impostors: str,
        group: str | None,
        by: Sequence[str],
        failures: Sequence[str],
        morphs: str | None,
        morph_rule: str,
        fpir: Sequence[float],
        rank: int,
        bootstrap: int,
        seed: int,
        mirror: bool,
        size: int,
        device: str,
        state: str | None,
    ):
        if size < 1:
            raise ValueError(f"benchmark.size={size}: an image has at least one pixel; usual is 112")
        for key, rates in (("fmr", fmr), ("fpir", fpir)):
            if not all(0 < rate < 1 for rate in rates):
                raise ValueError(f"benchmark.{key} is {[*rates]}: a target rate lies between 0 and 1, as 1e-4")
        if not fmr:
            raise ValueError("benchmark.fmr is empty: give false match rates, as [1e-4,1e-6]")
        if impostors not in RULES or (impostors == "all") == (group is not None):
            raise ValueError(
                f"benchmark.impostors={impostors}, benchmark.group={group}: choose all without a group, or same_group "
                "or cross_group with the column that says the group"
            )
        strange = [one for one in failures if one not in FAILURES]
        if strange:
            raise ValueError(f"benchmark.failures names {', '.join(strange)}: choose among {', '.join(FAILURES)}")
        if rank < 1 or bootstrap < 0:
            raise ValueError(f"benchmark.rank={rank}, benchmark.bootstrap={bootstrap}: at least 1, and not below 0")
        if device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"benchmark.device={device}: choose auto, cpu or cuda")
        check_rule(morph_rule)
        self.name, self.mirror, self.size = name, bool(mirror), size
        self.path, self.list, self.morphs, self.state = (
            None if one is None else Path(one).expanduser() for one in (path, list, morphs, state)
        )
        self.fmr = tuple(sorted({float(rate) for rate in fmr}, reverse=True))
        self.fpir = tuple(sorted({float(rate) for rate in fpir}, reverse=True))
        self.impostors, self.group, self.by, self.failures = impostors, group, tuple(by), tuple(failures)
        self.morph_rule, self.rank, self.bootstrap = morph_rule, rank, Bootstrap(bootstrap, seed)
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device

    def open(self, own: Any = None) -> ImageList:
        """The images, each file looked for.

        Args:
            own: ignored: held-out training identities are no such list.

        Raises:
            FileNotFoundError: the folder, a list, or images are not there.
            ValueError: no path, a list that cannot be read, one without genuine or impostor comparisons, or with more
                of them than a target allows to keep scores for.
        """
        if self.path is None:
            raise ValueError("benchmark.path is null: give the folder of the images, with images.csv in it")
        images = read_list(
            self.path,
            self.list or self.path / "images.csv",
            self.morphs,
            sorted({*self.by, *([self.group] if self.group else [])}),
            name=self.name,
            size=self.size,
            accept_unreadable="unreadable" in self.failures,
        )
        if images.listed.any() and "listed" not in self.failures:
            raise ValueError(
                f"{images.source}: {int(images.listed.sum()):,} images are listed as failed: count them as failures to "
                "enrol (benchmark.failures), or take them out"
            )
        if images.morphs is not None:
            lost = np.setdiff1d(np.concatenate(images.morphs.contributors), images.person[images.probes])
            if len(lost):
                raise ValueError(
                    f"{self.morphs}: {len(lost):,} contributors have no image to compare a morph with: "
                    f"{', '.join(images.people[person] for person in lost[:10])}{', …' if len(lost) > 10 else ''}"
                )
        if self.group is not None and "unknown" in images.groups[self.group].names:
            raise ValueError(
                f"{images.source}: some images have no {self.group}, by which impostors are chosen: fill it in, or set "
                "benchmark.impostors=all benchmark.group=null"
            )
        comparisons = compare(images, (images.enrol, images.probes), self.impostors, self.group)
        total, genuine = comparisons.impostors(), len(comparisons.genuine())
        if not total or not genuine:
            raise ValueError(
                f"{images.source}: {genuine:,} genuine and {total:,} impostor comparisons ({self.impostors}); both are "
                "needed: check the columns person and set"
            )
        needed(max(self.fmr), total)
        return images

    def evaluate(self, embeddings: np.ndarray, images: ImageList, progress: Progress | None = None) -> CountedResult:
        """Compares all with all, and counts.

        Metrics, each rate with ``_low`` and ``_high``: ``<name>/fnmr@1e-4`` (one per target), ``<name>/fmr@1e-4`` (what
        the threshold gives), ``<name>/threshold@1e-4``, ``<name>/failures`` (share of images without a template); with
        morphs ``<name>/mmpmr@1e-4``; with searches ``<name>/fnir@1e-2`` and ``<name>/rank1``.

        Args:
            embeddings: (M, D), one row per image, in their order; need not be normalised.
            images: what `open` gave, its images loaded.
            progress: told of comparisons.

        Raises:
            ValueError: another number of rows, rows that are zero or not finite, no genuine or no impostor comparison.
        """
        enrolled = enrol(embeddings, images, "zero" in self.failures)
        comparisons = compare(images, enrolled.sides, self.impostors, self.group)
        total, genuine = comparisons.impostors(), enrolled.genuine()
        if not total:
            raise ValueError(
                f"{images.source}: {len(enrolled.reasons):,} of {len(images):,} images have failed, and none of the "
                f"others are impostors ({self.impostors}); without them there is no threshold"
            )
        count = max(needed(max(self.fmr), total), min(total, KEPT))
        pair = enrolled.enrol, enrolled.verify
        tail = largest(*pair, comparisons, count, device=self.device, progress=progress, state=self.state)
        rest = len(tail.scores) < total
        sample = sample_scores(*pair, comparisons, SAMPLED, self.bootstrap.seed) if rest else np.empty(0)
        metrics, notes, kept, rows = self._rates(images, comparisons, tail, genuine)
        kept |= det_curve(genuine.scores, tail, sample) | {"impostor_sample": _thinned(sample if rest else tail.scores)}
        tables = {"thresholds": rows, "failures": enrolled.reasons, "groups": [], "cross_groups": []}
        for column in self.by:
            about = images.groups[column], enrolled.sides, comparisons, tail, genuine
            own, cross = group_tables(column, *about, self.fmr, self.bootstrap)
            tables["groups"] += own
            tables["cross_groups"] += cross
        metrics[f"{self.name}/failures"] = float(enrolled.failed[images.person >= 0].mean())
        if images.morphs is not None:
            morph, person, scores = enrolled.morphs(embeddings)
            thresholds = np.array([row["threshold"] for row in rows])
            for row, share in zip(rows, mmpmr(morph, person, scores, thresholds, self.morph_rule), strict=True):
                row["mmpmr"] = metrics[f"{self.name}/mmpmr@{short(row['fmr_target'])}"] = float(share)
        searches = None
        if self.fpir:
            told = None if progress is None else lambda done, whole: progress(total + done, total + whole)
            searches, person = enrolled.searches(embeddings, self.device, told)
            found, table = self._identified(searches, person, len(images.people), notes)
            metrics |= found
            kept["cmc"], tables["identification"] = searches.cmc(CMC), table
        main = f"{self.name}/fnmr@{short(self.fmr[-1])}"
        stamp = self._stamp(images, tail, len(genuine.scores), searches)
        return CountedResult(self.name, metrics, kept, stamp, main, True, notes, (), tables)

    def _rates(
        self, images: ImageList, comparisons: Comparisons, tail: Tail, genuine: Genuine
    ) -> tuple[dict[str, float], dict[str, str], dict[str, np.ndarray], list[dict[str, Any]]]:
        """Metrics, notes, what is kept, and a row for each target."""
        thresholds = np.array([tail.threshold(target) for target in self.fmr])
        rejected, bounds, errors = fnmr(genuine, thresholds, self.bootstrap)
        around = fmr_intervals(tail, thresholds, comparisons, len(images.people), self.bootstrap)
        matches = np.array([tail.matches(threshold) for threshold in thresholds])
        metrics, notes, rows = {}, {}, []
        for i, target in enumerate(self.fmr):
            key, share = f"{self.name}/fnmr@{short(target)}", float(rejected[i] / len(genuine.scores))
            attained = float(matches[i] / tail.comparisons)
            metrics[key] = share
            if self.bootstrap.replicates:
                metrics |= {f"{key}_low": float(bounds[0, i]), f"{key}_high": float(bounds[1, i])}
                notes[key] = f"95 % interval {100 * bounds[0, i]:.3f} to {100 * bounds[1, i]:.3f}, over people"
            if not allowed_false_accepts(target, tail.comparisons):
                notes[key] = f"zero false matches, N={tail.comparisons:,}"
            metrics[f"{self.name}/fmr@{short(target)}"] = attained
            metrics[f"{self.name}/threshold@{short(target)}"] = float(thresholds[i])
            rows.append({
                "fmr_target": target, "threshold": thresholds[i], "impostor_comparisons": tail.comparisons,
                "false_matches": matches[i], "fmr": attained, "fmr_low": around[0, i], "fmr_high": around[1, i],
                "genuine_comparisons": len(genuine.scores), "false_non_matches": rejected[i], "fnmr": share,
                "fnmr_low": bounds[0, i], "fnmr_high": bounds[1, i],
            })  # fmt: skip
        end = int(matches.max())
        kept = {
            "targets": np.array(self.fmr), "thresholds": thresholds,
            "genuine": genuine.scores, "genuine_person": genuine.person,
            "subject_errors": errors, "subject_trials": np.bincount(genuine.person, minlength=genuine.people),
            "tail_scores": tail.scores[:end], "tail_enrol_person": comparisons.enrol[tail.enrol[:end]],
            "tail_verify_person": comparisons.verify[tail.verify[:end]],
        }  # fmt: skip
        return metrics, notes, kept, rows

    def _identified(
        self, searches: Searches, person: np.ndarray, people: int, notes: dict[str, str]
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """FNIR at each FPIR, rank 1, and a row for each target."""
        mated, strangers = int(searches.mated.sum()), int(searches.strangers.sum())
        thresholds = [searches.threshold(target) for target in self.fpir]
        missed = np.stack([searches.missed(threshold, self.rank) for threshold in thresholds], axis=1)
        errors = per_subject(person, missed, people)
        trials = np.bincount(person, weights=searches.mated, minlength=people)
        bounds = self.bootstrap.shares(errors, np.repeat(trials[:, None], len(thresholds), axis=1))
        metrics, rows = {}, []
        for i, target in enumerate(self.fpir):
            key, count = f"{self.name}/fnir@{short(target)}", int(missed[:, i].sum())
            metrics[key] = count / mated
            if self.bootstrap.replicates:
                metrics |= {f"{key}_low": float(bounds[0, i]), f"{key}_high": float(bounds[1, i])}
                notes[key] = f"95 % interval {100 * bounds[0, i]:.3f} to {100 * bounds[1, i]:.3f}, over people"
            if not allowed_false_accepts(target, strangers):
                notes[key] = f"no false positive, N={strangers:,} searches"
            found = int((searches.other[searches.strangers] >= thresholds[i]).sum())
            rows.append({
                "fpir_target": target, "threshold": thresholds[i], "non_mated": strangers, "false_positives": found,
                "fpir": found / strangers, "mated": mated, "rank": self.rank, "missed": count, "fnir": count / mated,
                "fnir_low": bounds[0, i], "fnir_high": bounds[1, i],
            })  # fmt: skip
        return metrics | {f"{self.name}/rank1": float(searches.cmc(1)[0])}, rows

    def _stamp(self, images: ImageList, tail: Tail, genuine: int, searches: Searches | None) -> dict[str, Any]:
        kept, impostors = len(tail.scores), tail.comparisons
        behind = f"exact to FMR {kept / impostors:.1e}, then {SAMPLED} × {SAMPLED} images"
        rules: dict[str, Any] = {}
        if images.morphs is not None:
            rules["morphs"] = f"{len(images.morphs.images)}, accepted: {self.morph_rule}"
        if searches is not None:
            own = "own mate taken out" if searches.mated.all() else "people who are not enrolled"
            rules["searches"] = f"rank {self.rank}, first enrolment image of a person, non-mated: {own}"
        return rules | {
            "protocol": "frvt-1:1",
            "mirror": self.mirror,
            "score": "cosine similarity",
            "sets": "one list" if images.verify is None else "enrol × verify",
            "impostors": self.impostors if self.group is None else f"{self.impostors} by {self.group}",
            "impostor": impostors,
            "genuine": genuine,
            "fmr_rule": "at_most",
            "failures": f"{', '.join(self.failures)}: false non-matches, no impostor comparisons",
            "det": "exact" if kept == impostors else behind,
            "size": images.size,
            "color": "rgb",
            "source": f"{images.source} sha256:{images.digest}",
        }


def _thinned(scores: np.ndarray) -> np.ndarray:
    """At most `DRAWN` of them, evenly along their order: what a histogram is drawn of."""
    return np.sort(scores)[:: max(1, -(-len(scores) // DRAWN))].astype(np.float32)
