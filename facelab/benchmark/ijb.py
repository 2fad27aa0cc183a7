"""IJB-B and IJB-C: verification of templates, and open-set search for them in two galleries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from facelab.benchmark.ijb_files import Layout, Roster, TemplateSet, check, read_templates
from facelab.benchmark.operating_points import allowed_false_accepts, check_far_rule, det, tars_at_fars
from facelab.benchmark.pairs import short
from facelab.benchmark.scores import CountedResult
from facelab.benchmark.searching import LONGEST, Search, check_bootstrap, check_ranks, cmc, identified, look_up, shares
from facelab.benchmark.tallies import by_subject, summary
from facelab.benchmark.templates import Pooling, places, template_scores


class IJBBenchmark:
    """IJB-B (Whitelam et al., 2017) and IJB-C (Maze et al., 2018), 1:1 with mixed media, and 1:N.

    An image is warped to the five-point template; its embedding is embed(image) + embed(mirrored image), the caller
    embeds and adds the mirror where `mirror` says so. Templates are pooled (`Pooling`), their score is the cosine.
    1:N, in each gallery: a probe is mated where its subject is enrolled there. The threshold is taken from the best
    scores of the probes that are not; TPIR is the share of mated probes whose mate comes first and reaches it, rank-k
    the share whose mate is among the first k (equal scores count against the mate). Reported is the mean of the
    galleries, and each by itself.

    Args:
        name: first part of the metric keys.
        path: the folder that holds ``meta`` and ``loose_crop``.
        prefix: how the names of the lists begin.
        galleries: of the 1:N protocol, as their lists are named; none: 1:1 alone.
        mirror: whether the caller adds the mirrored image's embedding; part of the stamp.
        norm: see `Pooling`, as for detector_weight and pooling.
        detector_weight: see there.
        pooling: see there.
        far: false accept rates to report TAR at.
        far_rule: ``at_most`` or ``nearest``, see `facelab.benchmark.operating_points.tars_at_fars`; of FPIR too.
        fpir: false positive identification rates to report TPIR at.
        ranks: k of rank-k.
        size: image size handed to the network, pixels.
        bootstrap: replicates of the 95 % intervals over subjects; 0: no intervals.
        seed: of these.
        known: published counts, by `facelab.benchmark.ijb_files.counts`' names, which `check` compares.

    Attributes:
        evaluates_only: a training does not report on it.

    Raises:
        ValueError: a setting out of range.
    """

    evaluates_only = True

    def __init__(
        self,
        name: str,
        path: str | None,
        prefix: str,
        galleries: Sequence[str],
        mirror: bool,
        norm: bool,
        detector_weight: bool,
        pooling: str,
        far: Sequence[float],
        far_rule: str,
        fpir: Sequence[float],
        ranks: Sequence[int],
        size: int,
        bootstrap: int,
        seed: int,
        known: Mapping[str, int],
    ):
        if size < 1:
            raise ValueError(f"benchmark.size={size}: an image has at least one pixel; usual is 112")
        if not far:
            raise ValueError("benchmark.far is empty: give false accept rates, as [1e-4]")
        check_far_rule(far_rule)
        for target in (*far, *fpir):
            allowed_false_accepts(target, 1)
        self.path = None if path is None else Path(path).expanduser()
        self.name, self.prefix, self.galleries = name, prefix, tuple(galleries)
        self.mirror, self.pooling = bool(mirror), Pooling(bool(norm), bool(detector_weight), pooling)
        self.far, self.far_rule, self.size = tuple(sorted(map(float, far))), far_rule, size
        self.fpir, self.ranks = tuple(sorted(map(float, fpir))), check_ranks(ranks)
        self.bootstrap, self.known = check_bootstrap(bootstrap, seed), dict(known)

    def _layout(self) -> Layout:
        if self.path is None:
            raise ValueError("benchmark.path is null: give the folder that holds meta and loose_crop")
        return Layout(self.path, self.prefix, self.galleries)

    def check(self) -> list[str]:
        """The doctor: what is missing, and counts other than the published ones; empty where all is there."""
        return check(self._layout(), self.known)

    def open(self, own: Any) -> TemplateSet:
        """Reads the lists; images are read when they are embedded.

        Args:
            own: ignored.

        Raises:
            FileNotFoundError: something is missing; all of it is named.
            ValueError: no path, or lists that cannot be read or do not fit each other.
        """
        return read_templates(self._layout(), self.name, self.size)

    def evaluate(self, embeddings: np.ndarray, images: TemplateSet) -> CountedResult:
        """Pools, compares and searches.

        Metrics: ``<name>/tar@1e-4`` for each target; ``<name>/tpir@fpir=0.01``, ``<name>/rank1`` and so on, means of
        the galleries, and ``<name>/G1/rank1`` … of each. All as fractions, each with ``_low`` and ``_high``, the 95 %
        interval over subjects. A target that so many impostors cannot measure is the TAR at zero false accepts, and
        ``notes`` says so.

        Args:
            embeddings: (M,D), one row per image, in order; need not be normalised.
            images: what `open` gave.

        Raises:
            ValueError: see `Pooling`.
        """
        name = images.name
        templates = self.pooling(
            embeddings, images.template, images.media, images.detector, name, lambda i: images.names[i]
        )
        scores = template_scores(templates.features, images.pairs)
        genuine, impostor = scores[images.same], np.sort(scores[~images.same])
        points = tars_at_fars(genuine, impostor, self.far, self.far_rule)
        thresholds = np.array([point.threshold for point in points])
        counts = by_subject(images.ids, images.pairs, images.same, scores, thresholds)
        keys = [f"{name}/tar@{short(target)}" for target in self.far]
        accepted = dict(zip(keys, counts["subject_accepted"].T, strict=True))
        metrics, notes = shares(accepted, counts["subject_genuine"], counts["subject"], **self.bootstrap)
        for key, target in zip(keys, self.far, strict=True):
            if self.far_rule == "at_most" and not allowed_false_accepts(target, len(impostor)):
                notes[key] = f"zero false accepts, N={len(impostor):,}"
        kept = {
            "genuine": genuine,
            **summary(impostor),
            "thresholds": thresholds,
            **counts,
            **{f"det_{key}": values for key, values in det(genuine, impostor)._asdict().items()},
        }
        if images.galleries:
            found, words, kept["cmc"] = self._search(templates.features, images)
            metrics, notes = metrics | found, notes | words
        main = f"{name}/tar@{short(1e-4 if 1e-4 in self.far else self.far[0])}"
        return CountedResult(name, metrics, kept, self._stamp(images), main, notes=notes)

    def _search(self, features: np.ndarray, images: TemplateSet) -> tuple[dict[str, float], dict[str, str], np.ndarray]:
        """Means over the galleries, then each gallery; what is to be said of them; and the mean CMC curve."""
        probes = images.probes
        assert probes is not None, "galleries come with probes"
        looked = {gallery.name: _look_up(features, images.ids, probes, gallery) for gallery in images.galleries}
        hits = {name: self._hits(found) for name, found in looked.items()}
        keys = set.intersection(*(set(one) for one in hits.values()))
        order = [key for key in next(iter(hits.values())) if key in keys]
        subject = {name: probes.subject[found.mated] for name, found in looked.items()}
        # A rate's mean over galleries is one rate whose probes count by their gallery's number of them.
        weight = {name: np.full(len(who), 1 / len(who)) for name, who in subject.items()}
        means = {
            f"{images.name}/{key}": np.concatenate([hits[name][key] * weight[name] for name in looked]) for key in order
        }
        weights, everybody = (np.concatenate(list(parts.values())) for parts in (weight, subject))
        metrics, notes = shares(means, weights, everybody, **self.bootstrap)
        for name, values in hits.items():
            own = {f"{images.name}/{name}/{key}": hit for key, hit in values.items()}
            found, words = shares(own, np.ones(len(subject[name])), subject[name], **self.bootstrap)
            metrics, notes = metrics | found, notes | words
        longest = max(LONGEST, *self.ranks)
        return metrics, notes, np.mean([cmc(found.rank[found.mated], longest) for found in looked.values()], axis=0)

    def _hits(self, found: Search) -> dict[str, np.ndarray]:
        """Key → whether each probe with a mate is a hit."""
        rank = found.rank[found.mated]
        return identified(found, self.fpir, self.far_rule) | {f"rank{k}": rank <= k for k in self.ranks}

    def _stamp(self, images: TemplateSet) -> dict[str, Any]:
        return {
            "protocol": "templates 1:1" + (f" and 1:N in {', '.join(self.galleries)}" if self.galleries else ""),
            "mirror": self.mirror,
            **self.pooling.stamp,
            "score": "cosine similarity",
            "far_rule": self.far_rule,
            "fpir_from": "best scores of probes without a mate in the gallery",
            "ties": "against the mate",
            "images": len(images),
            "templates": len(images.ids),
            "pairs": len(images.pairs),
            "genuine": int(images.same.sum()),
            "impostor": int((~images.same).sum()),
            "size": images.size,
            "color": "rgb",
            "crop": "five points to the 112 template, similarity, bilinear",
            "source": f"{self.prefix} lists sha256:{images.digest}",
        }


def _look_up(features: np.ndarray, ids: np.ndarray, probes: Roster, gallery: Roster) -> Search:
    one, other = (features[places(ids, roster.template)] for roster in (probes, gallery))
    found = look_up(one, other, probes.subject, gallery.subject)
    if not found.mated.any():
        raise ValueError(
            f"gallery {gallery.name}: none of the {len(found.mated):,} probes is of a subject that is enrolled in it; "
            "get the 1:N lists from one source, or set benchmark.galleries=[]"
        )
    return found
