"""Data sets in their official layouts, tiny: what tests look for in them is known by construction."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
from scipy.io import savemat

from facelab.alignment import TEMPLATE

SIDE = 24


def image(file, rng):
    file.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(file), rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))


def ijb(root, seed=0, prefix="ijbc", galleries=("G1", "G2"), subjects=7, share=0.6):
    """Subjects 100, 101, …, in turn in one gallery or the other; a gallery template and three probe templates each.

    Templates have one to four images of up to three media, whose numbers are used by other templates too.
    """
    rng = np.random.default_rng(seed)
    rows, enrolled, probes = [], [], []
    for subject in range(100, 100 + subjects):
        for kind in range(4):
            template = 10 * subject + kind
            (probes if kind else enrolled).append((template, subject))
            rows += [(template, int(rng.integers(1, 4))) for _ in range(rng.integers(1, 5))]
    rows = [rows[i] for i in rng.permutation(len(rows))]
    names = [f"{i + 1}.jpg" for i in range(len(rows))]
    points = TEMPLATE * SIDE / 112 + rng.normal(0, 0.3, (len(rows), 5, 2))
    scores = rng.uniform(0.5, 1, len(rows))
    pairs = [(one, other, int(a == b)) for one, a in enrolled for other, b in probes]
    pairs = [pairs[i] for i in rng.permutation(len(pairs)) if rng.random() < share or pairs[i][2]]
    for name in names:
        image(root / "loose_crop" / name, rng)
    meta = root / "meta"
    meta.mkdir()
    lines = [f"{name} {template} {media}" for name, (template, media) in zip(names, rows, strict=True)]
    (meta / f"{prefix}_face_tid_mid.txt").write_text("\n".join(lines) + "\n")
    lines = [
        " ".join([name, *(f"{value:.6f}" for value in five.ravel()), f"{score:.6f}"])
        for name, five, score in zip(names, points, scores, strict=True)
    ]
    (meta / f"{prefix}_name_5pts_score.txt").write_text("\n".join(lines) + "\n")
    (meta / f"{prefix}_template_pair_label.txt").write_text("".join("{} {} {}\n".format(*pair) for pair in pairs))
    heading = "TEMPLATE_ID,SUBJECT_ID,FILENAME,FACE_X\n"

    def listed(file, members):
        (meta / file).write_text(heading + "".join(f"{t},{s},img/{t}.png,{i}\n" for t, s in members for i in range(2)))

    for number, gallery in enumerate(galleries):
        listed(f"{prefix}_1N_gallery_{gallery}.csv", enrolled[number :: len(galleries)])
    listed(f"{prefix}_1N_probe_mixed.csv", probes)
    detector = np.array([float(f"{score:.6f}") for score in scores])
    return SimpleNamespace(
        root=root, rows=rows, names=names, points=points, detector=detector, pairs=pairs, enrolled=enrolled,
        probes=probes, galleries=galleries,
    )  # fmt: skip


def tinyface(root, seed=0, people=5, distractors=6):
    """Person p has p % 2 + 1 mates and p % 3 + 1 probes; the lists have the authors' cells within cells."""
    rng = np.random.default_rng(seed)
    lists = {"probe": [], "gallery": []}
    for person in range(1, people + 1):
        lists["gallery"] += [(f"{person}_{k}.jpg", person) for k in range(person % 2 + 1)]
        lists["probe"] += [(f"{person}_{9 - k}.jpg", person) for k in range(person % 3 + 1)]
    files = {
        "probe": ("Probe", "probe_img_ID_pairs.mat"),
        "gallery": ("Gallery_Match", "gallery_match_img_ID_pairs.mat"),
    }
    for key, (folder, file) in files.items():
        lists[key] = [lists[key][i] for i in rng.permutation(len(lists[key]))]
        for name, _ in lists[key]:
            image(root / folder / name, rng)
        cells = np.empty((len(lists[key]), 1), object)
        cells[:, 0] = [np.array([name]) for name, _ in lists[key]]
        ids = np.array([[person] for _, person in lists[key]], np.uint16)
        savemat(root / file, {f"{key}_set": cells, f"{key}_ids": ids})
    for number in range(distractors):
        image(root / "Gallery_Distractor" / f"{number}.jpg", rng)
    return SimpleNamespace(root=root, **lists, distractors=distractors)


def megaface(root, seed=0, people=3, each=4, distractors=12, sizes=(5, 12)):
    """The pack's folders, with a wrongly labelled probe of the first person, and the third distractor a noise."""
    rng = np.random.default_rng(seed)
    probes = [(f"P_{p}/P_{p}_{k}.png", f"P_{p}") for p in range(people) for k in range(each)]
    others = [f"10{k % 2}/4{k}@N00/{k}_0.jpg" for k in range(distractors)]
    for path, _ in probes:
        image(root / "facescrub_images" / path, rng)
    for path in others:
        image(root / "megaface_images" / path, rng)
    lists = root / "devkit" / "templatelists"
    lists.mkdir(parents=True)
    content = {"path": [path for path, _ in probes], "id": [person for _, person in probes]}
    (lists / "facescrub_features_list.json").write_text(json.dumps(content))
    for size in sizes:
        drawn = [others[i] for i in rng.permutation(distractors)[:size]]
        if others[2] not in drawn:
            drawn[0] = others[2]
        (lists / f"megaface_features_list.json_{size}_1").write_text(json.dumps({"path": drawn}))
    (root / "facescrub_noises.txt").write_text("# wrong labels\nP_0_1.png\n")
    (root / "megaface_noises.txt").write_text(f"# overlap\n7\t{others[2]}\n")
    return SimpleNamespace(root=root, probes=probes, others=others, lists=lists, sizes=sizes)


def ytf(root, seed=0, folds=3, each=4, people=4):
    """Every person has two videos of one to five frames; of each fold's pairs half are genuine."""
    rng = np.random.default_rng(seed)
    videos = [f"Some_{chr(97 + p)}/{v}" for p in range(people) for v in range(2)]
    frames = {}
    for video in videos:
        number = video.split("/")[1]
        frames[video] = [f"aligned_detect_{number}.{k}.jpg" for k in range(rng.integers(1, 6))]
        for name in frames[video]:
            image(root / "aligned_images_DB" / video / name, rng)
    lines, rows = ["split number, pair number, first name, second name, is same"], []
    for fold in range(folds):
        for number in range(each):
            person = int(rng.integers(people))
            other = (person + int(rng.integers(1, people))) % people
            same = number % 2 == 0
            pair = (videos[2 * person], videos[2 * person + 1] if same else videos[2 * other])
            rows.append((fold, *pair, same))
            lines.append(f"{fold + 1}, {number + 1}, {pair[0]}, {pair[1]}, {int(same)}")
    (root / "splits.txt").write_text("\n".join(lines) + "\n")
    return SimpleNamespace(root=root, frames=frames, rows=rows)
