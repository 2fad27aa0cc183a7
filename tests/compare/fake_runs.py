"""Run directories without a training: every file that `facelab.compare` reads, as training and evaluation write it.

Their scores are drawn: a run of skill m has genuine cosines around m and impostor cosines around 0. What is difficult
in a pair is the same for every run, and a seed adds its own noise; so runs of other skill differ by as much as is
planted, and runs of equal skill by chance alone.
"""

import csv
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from facelab.benchmark.operating_points import auc, det, eer, fold_accuracy, tar_at_far
from facelab.benchmark.scores import PairResult, save_scores

CONF = Path(__file__).resolve().parents[2] / "conf"
GROUPS = {"backbone": "tiny", "loss": "arcface", "data": "synthetic", "benchmark": "pairs", "optimizer": "sgd"}
HISTORY = "step,images,epoch,lr,train/loss,train/accuracy,train/grad_norm,train/angle_median,train/norm_median,"
HISTORY += "images_per_s,seconds,val/accuracy,val/accuracy_std,val/auc,val/eer"


@dataclass(frozen=True)
class Pairs:
    """A benchmark's pairs, the same for every run: N pairs, half of them genuine, fold by fold."""

    name: str
    people: np.ndarray  # (N,2)
    same: np.ndarray  # (N,)
    fold: np.ndarray  # (N,)
    hard: np.ndarray  # (N,) how much lower its cosine is, in standard deviations
    digest: str


def draw_pairs(name="lfw", pairs=600, people=150, folds=10, seed=0):
    """N pairs of so many people; LFW's size is pairs=6000, people=4300."""
    rng = np.random.default_rng([seed, len(name), *name.encode()])
    same = np.tile(np.repeat([True, False], pairs // folds // 2), folds)
    fold = np.repeat(np.arange(folds), pairs // folds)
    one = rng.integers(people, size=len(same))
    other = np.where(same, one, (one + rng.integers(1, people, size=len(same))) % people)
    of_people = rng.normal(size=people)  # a face that is hard in one pair is hard in others: pairs are not independent
    hard = 0.7 * rng.normal(size=len(same)) + 0.5 * (of_people[one] + of_people[other]) / np.sqrt(1 + same)
    return Pairs(name, np.stack([one, other], axis=1), same, fold, hard, f"{seed:08x}")


def pair_result(pairs, skill, rng, people=True, size=112, **stamp):
    """What a run of such skill scores; 0.35 is some 91 %, 0.45 some 96 %, 0.6 some 99 %."""
    noise = 0.13 * (0.8 * pairs.hard + 0.6 * rng.normal(size=len(pairs.same)))
    cosine = np.clip(np.where(pairs.same, skill, 0) - np.where(pairs.same, 1, -1) * noise, -0.999, 0.999)
    distance, same, name = 2 - 2 * cosine, pairs.same, pairs.name
    accuracy, _ = fold_accuracy(distance, same, pairs.fold)
    genuine, impostor = -distance[same], -distance[~same]
    metrics = {f"{name}/accuracy": float(accuracy.mean()), f"{name}/accuracy_std": float(accuracy.std())}
    metrics[f"{name}/tar@far=1e-3"] = tar_at_far(genuine, impostor, 0.001, "at_most").tar
    metrics |= {f"{name}/eer": eer(genuine, impostor), f"{name}/auc": auc(genuine, impostor)}
    notes = {} if len(impostor) >= 1000 else {f"{name}/tar@far=1e-3": f"zero false accepts, N={len(impostor):,}"}
    full = {
        "protocol": "pairs-10fold", "mirror": True, "score": "minus squared L2 distance",
        "distance": "squared L2 on unit sums", "thresholds": "0:4:0.01", "folds": int(pairs.fold.max()) + 1,
        "pairs": len(same), "genuine": int(same.sum()), "impostor": int((~same).sum()), "far_rule": "at_most",
        "size": size, "color": "rgb", "source": f"{name}.bin sha256:{pairs.digest}", **stamp,
    }  # fmt: skip
    whose = (pairs.people, "names") if people else (None, "")
    return PairResult(name, metrics, -distance, same, pairs.fold, full, det(genuine, impostor), notes, (), *whose)


def configuration(choices, seed, name, job):
    """A resolved config.yaml: `loss` and other groups choose a file of conf/, dotted keys a value in it."""
    tree = _read(CONF / "config.yaml")
    tree.pop("hydra")
    for group, option in GROUPS.items():
        tree[group] = {**tree.get(group, {}), **_read(CONF / group / f"{choices.get(group, option)}.yaml")}
    tree["trainer"] = _read(CONF / "trainer" / "default.yaml")
    tree["data"]["augment"] = _read(CONF / "data" / "augment" / "mirror_crop.yaml")
    tree["data"]["degrade"] = _read(CONF / "data" / "degrade" / "none.yaml")
    tree |= {"seed": seed, "name": name, "job": job, "head": {"_target_": "torch.nn.Identity"}}
    for key, value in choices.items():
        if key not in GROUPS:
            *folders, last = key.split(".")
            node = tree
            for folder in folders:
                node = node.setdefault(folder, {})
            node[last] = value
    return tree


def _read(path):
    """Without its defaults list, and what stands for data.size written out."""
    content = yaml.safe_load(path.read_text().replace("${data.size}", "112").replace("${facelab.job:}", "x"))
    content.pop("defaults", None)
    return content


def make_run(
    root, choices, seed=1, skill=0.5, sets=None, name="losses", finished=True, people=True, spread=0.01,
    images_per_s=1000.0, parameters=1_000_000, devices=1, gpu="NVIDIA H100", memory=2**30, images=64_000, job=None,
    stamp=None,
):  # fmt: skip
    """Writes <root>/<name>/<job>.

    Args:
        root: the folder runs/.
        choices: what differs: {"loss": "cosface"}, {"loss.margin": 0.3}.
        seed: of the run.
        skill: mean genuine cosine.
        sets: `Pairs`, each a benchmark; None: 600 pairs called lfw.
        name: the sweep.
        finished: whether it has come to its end; otherwise half of the history and no scores.
        people: whether its score files know whose the pairs are.
        spread: how much seeds differ in skill.
        images_per_s: in training.
        parameters: of the network.
        devices: trainer.devices.
        gpu: its name, or None for a CPU.
        memory: bytes at most.
        images: seen.
        job: a word for the folder; None: as the door names it.
        stamp: what differs in the protocol stamps.

    Returns:
        The run directory.
    """
    words = [f"{key}={value}" for key, value in {**choices, "seed": seed}.items()]
    job = job or ",".join(sorted(words, key=lambda word: ("." in word.split("=")[0], word)))
    folder = Path(root) / name / job
    folder.mkdir(parents=True)
    config = configuration({**choices, "trainer.devices": devices}, seed, name, job)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    start = {"time": "2026-01-05T10:00:00+0000", "command": "python -m facelab.train", "host": "node1", "cores": 8}
    start |= {"system": "Linux", "threads": 8, "gpus": [gpu] * devices if gpu else []}
    start |= {"peak_memory": memory} if finished and memory else {}
    about = {"seed": seed, "wandb": hashlib.sha256(job.encode()).hexdigest()[:16], "git": {"commit": "0" * 40}}
    about |= {"data": None, "versions": {"torch": "2.11.0"}, "starts": [start]}
    (folder / "environment.json").write_text(json.dumps(about, indent=2))
    rng = np.random.default_rng([seed, *job.encode()])
    _write_history(folder / "metrics.csv", images if finished else images // 2, skill, images_per_s, rng)
    if not finished:
        return folder
    own = skill + spread * rng.normal()
    metrics = {}
    for pairs in sets or [draw_pairs()]:
        result = pair_result(pairs, own, rng, people, **(stamp or {}))
        save_scores(folder / "scores" / f"{pairs.name}.npz", result)
        metrics |= result.metrics
    seconds = images / images_per_s
    metrics |= {"val/accuracy": skill, "best_step": 900, "steps": 1000, "images": images, "seconds": seconds}
    metrics |= {"images_per_s": images_per_s, "parameters": parameters, "identities": 360}
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    return folder


def _write_history(path, images, skill, rate, rng):
    """Ten rows of training and five validations."""
    columns = HISTORY.split(",")
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        for i in range(1, 11):
            seen = images * i // 10
            row = {"step": seen // 64, "images": seen, "epoch": i / 2, "lr": 0.1, "train/loss": 20 / i}
            writer.writerow({**row, "train/accuracy": i / 20, "images_per_s": rate, "seconds": seen / rate})
            if i % 2 == 0:
                accuracy = 0.5 + 0.5 * skill * (1 - np.exp(-i / 3)) + 0.005 * rng.normal()
                writer.writerow({"step": seen // 64, "images": seen, "epoch": i / 2, "val/accuracy": accuracy})


def make_sweep(root, points, seeds=(1, 2, 3), key="loss", **others):
    """<root>/<name>: one run for each point and seed.

    Args:
        root: the folder runs/.
        points: value of `key` → skill, or a list of (choices, skill).
        seeds: of each.
        key: what is swept.
        **others: as `make_run`.

    Returns:
        The sweep's folder.
    """
    listed = [({key: value}, skill) for value, skill in points.items()] if isinstance(points, dict) else points
    for choices, skill in listed:
        for seed in seeds:
            folder = make_run(root, choices, seed, skill, **others)
    return folder.parent
