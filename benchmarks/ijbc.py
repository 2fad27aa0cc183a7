r"""IJB-C's 1:1 protocol at its full size: facelab against the way of the public scripts, in the same run.

Random embeddings in the structure of IJB-C: 469,375 images of 3,531 enrolled templates and 19,593 others, 15,658,489
pairs of the one kind with the other, 19,557 of them genuine.

    pooling     embeddings to features of templates                            public: a loop over templates and media
    scores      of all pairs                                                   public: rows gathered, in float64
    points      TAR at FAR 1e-6 … 1e-1 and the DET curve                       public: the full ROC by a sort, as
                                                                               scikit-learn has it; the nearest FAR

Both answers are held against each other: scores to 1e-6, and the same TAR by the `nearest` rule. Memory is the peak of
resident pages beyond those before (Linux), of facelab's pooling, scores and points.

    python benchmarks/ijbc.py                                          # minutes
    python benchmarks/ijbc.py --images 9000 --enrolled 70 --others 400 --pairs 20000 --genuine 390   # a toy, seconds

Results go to results/ijbc.csv, but from a busy machine or of another size only with --record.
"""

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from classifier import Resident
from recording import BUSY, RESULTS, load, machine, record, today

from facelab.benchmark.operating_points import det, tars_at_fars
from facelab.benchmark.templates import Pooling, template_scores

FARS = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
FULL = {"images": 469_375, "enrolled": 3_531, "others": 19_593, "pairs": 15_658_489, "genuine": 19_557, "size": 512}
GATHERED = 100_000  # pairs at once, as public scripts have it


def main() -> None:
    """Measures, compares, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in FULL.items():
        parser.add_argument(f"--{name}", type=int, default=value, help="default: %(default)s")
    parser.add_argument("--record", action="store_true", help="even from a busy machine, or of another size")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the table")
    options = parser.parse_args()
    before = load()
    made = make(options)
    print(f"{options.images:,} × {options.size} embeddings, {len(made['pairs']):,} pairs", flush=True)
    memory = Resident()
    memory.begin()
    ours, found = facelab(made)
    extra = memory.end() / 2**20
    theirs, expected = public(made)
    away = float(np.abs(found["scores"] - expected["scores"]).max())
    rows = [(name, ours[name], theirs[name]) for name in ours]
    rows.append(("all", sum(ours.values()), sum(theirs.values())))
    sizes = {name: str(getattr(options, name)) for name in FULL}
    where = {"date": today(), "machine": machine(), "python": platform.python_version(), "numpy": np.__version__}
    table = []
    for name, mine, other in rows:
        print(f"{name:16} {mine:8.3f} s   public {other:8.3f} s   {mine / other:.3f} of it")
        figures = {"seconds": f"{mine:.3f}", "public_seconds": f"{other:.3f}", "ratio": f"{mine / other:.4f}"}
        table.append({**where, **sizes, "stage": name, **figures, "extra_mib": f"{extra:.0f}", "load": before})
    print(f"largest difference of scores {away:.2e}; {extra:,.0f} MiB beyond the embeddings")
    for far, one, other in zip(FARS, found["tars"], expected["tars"], strict=True):
        print(f"TAR at FAR {far:g}: {100 * one:.3f} %, public {100 * other:.3f} %")
    if away > 1e-6 or not np.allclose(found["tars"], expected["tars"], atol=2 / options.genuine):
        raise SystemExit("the two do not agree")
    full = all(getattr(options, name) == value for name, value in FULL.items())
    if (float(before) > BUSY or not full) and not options.record:
        print("not recorded")
        return
    print(record("ijbc", ["machine", "python", "numpy", *FULL, "stage"], table, options.results))


def make(options: argparse.Namespace) -> dict[str, Any]:
    """Embeddings that lean towards their subject, and lists; a template of every kind has an image at least."""
    rng = np.random.default_rng(0)
    count = options.enrolled + options.others
    subject = np.concatenate([np.arange(options.enrolled), rng.integers(0, options.enrolled, options.others)])
    template = np.concatenate([np.arange(count), np.sort(rng.integers(0, count, options.images - count))])
    template.sort()
    media = rng.integers(0, 4, options.images)
    directions = rng.standard_normal((options.enrolled, options.size), dtype=np.float32)
    embeddings = np.empty((options.images, options.size), np.float32)
    for start in range(0, options.images, 4096):
        rows = embeddings[start : start + 4096]
        rng.standard_normal(dtype=np.float32, out=rows)
        rows *= 10
        rows += directions[subject[template[start : start + 4096]]]
    genuine = rng.permutation(options.others)[: options.genuine]
    pairs = np.empty((options.pairs, 2), np.int32)
    pairs[:, 0] = rng.integers(0, options.enrolled, options.pairs)
    pairs[:, 1] = rng.integers(options.enrolled, count, options.pairs)
    pairs[: len(genuine)] = np.stack([subject[options.enrolled + genuine], options.enrolled + genuine], axis=1)
    pairs = pairs[rng.permutation(options.pairs)]
    same = subject[pairs[:, 0]] == subject[pairs[:, 1]]
    detector = rng.uniform(0.5, 1, options.images)
    return {"embeddings": embeddings, "template": template, "media": media, "detector": detector, "pairs": pairs,
            "same": same}  # fmt: skip


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and the result."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def facelab(made: dict[str, Any]) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds of each stage, scores and TARs."""
    seconds: dict[str, float] = {}
    pooling = Pooling(norm=True, detector_weight=True, pooling="media")
    images = made["embeddings"], made["template"], made["media"], made["detector"]
    seconds["pooling"], templates = timed(lambda: pooling(*images, "ijbc", str))
    seconds["scores"], scores = timed(lambda: template_scores(templates.features, made["pairs"]))

    def points() -> list[float]:
        genuine, impostor = scores[made["same"]], scores[~made["same"]]
        det(genuine, impostor)
        tars_at_fars(genuine, impostor, FARS, "at_most")
        return [point.tar for point in tars_at_fars(genuine, impostor, FARS, "nearest")]

    seconds["points"], tars = timed(points)
    return seconds, {"scores": scores, "tars": tars}


def public(made: dict[str, Any]) -> tuple[dict[str, float], dict[str, Any]]:
    """The same as public scripts go about it, in words of our own."""
    seconds: dict[str, float] = {}
    embeddings, template, media = made["embeddings"], made["template"], made["media"]

    def pool() -> np.ndarray:
        weighted = embeddings * made["detector"][:, None].astype(np.float32)
        ids = np.unique(template)
        features = np.zeros((len(ids), embeddings.shape[1]))
        for number, one in enumerate(ids):
            (own,) = np.where(template == one)
            rows, of = weighted[own], media[own]
            features[number] = sum(rows[of == part].mean(axis=0) for part in np.unique(of))
        return features / np.sqrt(np.sum(features**2, axis=1, keepdims=True))

    def gather(features: np.ndarray) -> np.ndarray:
        scores = np.empty(len(made["pairs"]))
        for start in range(0, len(scores), GATHERED):
            one, other = made["pairs"][start : start + GATHERED].T
            scores[start : start + GATHERED] = np.sum(features[one] * features[other], -1)
        return scores

    def roc(scores: np.ndarray) -> list[float]:
        order = np.argsort(scores, kind="mergesort")[::-1]
        values, genuine = scores[order], made["same"][order]
        last = np.r_[np.where(np.diff(values))[0], len(values) - 1]
        true = np.cumsum(genuine, dtype=np.float64)[last]
        false = 1 + last - true
        rates = np.flipud(np.r_[0, false / false[-1]]), np.flipud(np.r_[0, true / true[-1]])
        return [float(rates[1][np.argmin(np.abs(rates[0] - far))]) for far in FARS]

    seconds["pooling"], features = timed(pool)
    seconds["scores"], scores = timed(lambda: gather(features))
    seconds["points"], tars = timed(lambda: roc(scores))
    return seconds, {"scores": scores, "tars": tars}


if __name__ == "__main__":
    main()
