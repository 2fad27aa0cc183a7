"""Which images are trained on: counted by hand, the same for the same seeds, and never anybody who is held out."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from facelab.data.select import take
from facelab.data.split import hold_out

CONFIG = Path(__file__).resolve().parents[2] / "conf" / "config.yaml"
DEFAULT = yaml.safe_load(CONFIG.read_text())["data"]["take"]


def choose(**changes):
    """The defaults with changes; `noise__fraction` stands for a nested key."""
    choices = {key: dict(value) if isinstance(value, dict) else value for key, value in DEFAULT.items()}
    for key, value in changes.items():
        node, _, below = key.partition("__")
        if below:
            choices[node][below] = value
        else:
            choices[node] = value
    return choices


def people(counts, seed=0):
    """Labels of so many images of each person, mixed."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))


def taken_of(labels, **changes):
    """Where everybody may be trained on."""
    return take(labels, np.unique(labels), choose(**changes))


def times(taken):
    """Identity → its images."""
    return Counter(taken.identities[taken.labels].tolist())


def test_nothing_chosen_is_everything_as_it_is():
    labels = people([3, 1, 4, 1, 5, 9])
    trained = np.array([0, 2, 3, 5])
    expected = np.flatnonzero(np.isin(labels, trained))
    for choices in (None, DEFAULT, choose(identities=1.0), choose(images=1), choose(min_images=1, max_images=9)):
        taken = take(labels, trained, choices)
        assert taken.images.tolist() == expected.tolist()
        assert trained[taken.labels].tolist() == labels[expected].tolist()
        assert taken.identities.tolist() == trained.tolist()
        assert taken.told == {}
        assert str(taken) == ""


COUNTS = st.lists(st.integers(1, 12), min_size=8, max_size=30)
SEEDS = st.integers(0, 2**40)


@given(
    counts=COUNTS,
    held=st.integers(0, 3),
    identities=st.one_of(st.none(), st.integers(2, 4), st.floats(0.5, 1)),
    images=st.one_of(st.none(), st.floats(0.05, 1)),
    least=st.integers(1, 2),
    most=st.one_of(st.none(), st.integers(1, 8)),
    fraction=st.one_of(st.just(0.0), st.floats(0.01, 0.9)),
    kind=st.sampled_from(["flip", "outlier"]),
    seed=SEEDS,
)
def test_the_counts_are_those_that_were_asked_for(counts, held, identities, images, least, most, fraction, kind, seed):
    counts = np.array([*counts, 5, 5, 5, 5, 5, 5])
    labels = people(counts, seed % 97)
    trained = np.arange(held, len(counts))  # the first are held out
    words = {"identities": identities, "images": images, "min_images": least, "max_images": most, "seed": seed}
    words |= {"noise__fraction": fraction, "noise__kind": kind, "noise__seed": seed + 1}
    eligible = trained[counts[trained] >= least]
    expected = len(eligible) if identities is None else identities
    expected = expected if isinstance(expected, int) else round(expected * len(eligible))
    try:
        taken = take(labels, trained, choose(**words))
    except ValueError as error:  # nobody is left out, of whom outliers could be
        assert fraction and kind == "outlier" and "outlier takes" in str(error)  # noqa: PT017, PT018
        return
    again = take(labels, trained, choose(**words))
    for own, other in zip(taken.__dict__.values(), again.__dict__.values(), strict=True):
        assert np.array_equal(own, other) if isinstance(own, np.ndarray) else own == other
    # Who
    assert len(taken.identities) == expected
    assert (np.diff(taken.identities) > 0).all()
    assert set(taken.identities) <= set(eligible)
    # Which images
    assert (np.diff(taken.images) > 0).all()
    assert labels[taken.images].min() >= held, "an image of somebody who is held out"
    share = 1.0 if images is None else images
    wanted = {int(who): min(max(1, int(np.rint(share * counts[who]))), most or 99) for who in taken.identities}
    assert len(taken.images) == len(taken.labels) == sum(wanted.values())
    # Under which label
    right = taken.identities[taken.labels] == labels[taken.images]
    assert len(taken.wrong) == round(fraction * len(taken.images))
    assert taken.images[~right].tolist() == taken.wrong.tolist()
    if not fraction or kind == "outlier":
        assert times(taken) == wanted
    if kind == "outlier":
        assert not np.isin(labels[taken.wrong], taken.identities).any()
    elif fraction:
        assert Counter(labels[taken.images].tolist()) == wanted
    if taken.told:
        assert taken.told["images"] == len(taken.images)
        assert taken.told["of_images"] == counts[held:].sum()


def shown(taken, labels):
    return set(zip(taken.images.tolist(), taken.identities[taken.labels].tolist(), strict=True))


@given(COUNTS, st.floats(0.1, 1), st.floats(0.1, 1), SEEDS)
def test_a_larger_fraction_contains_the_smaller(counts, one, other, seed):
    labels = people([*counts, 4, 4, 4, 4, 4, 4])
    small, large = sorted([one, other])
    fewer, more = (taken_of(labels, identities=max(2, round(share * 14)), seed=seed) for share in (small, large))
    assert set(fewer.identities) <= set(more.identities)
    assert shown(fewer, labels) <= shown(more, labels)
    for name in ("images", "max_images"):
        values = (small, large) if name == "images" else (1 + int(small * 9), 1 + int(large * 9))
        fewer, more = (taken_of(labels, seed=seed, **{name: value}) for value in values)
        assert shown(fewer, labels) <= shown(more, labels)


@given(COUNTS, st.floats(0, 0.9), st.floats(0, 0.9), st.sampled_from(["flip", "outlier"]), SEEDS)
def test_more_noise_is_the_same_noise_and_more(counts, one, other, kind, seed):
    labels = people([*counts, *[20] * 12])
    small, large = sorted([one, other])
    words = {"noise__kind": kind, "noise__seed": seed, "identities": 6}
    few, many = (taken_of(labels, noise__fraction=fraction * 0.5, **words) for fraction in (small, large))
    assert set(few.wrong) <= set(many.wrong)
    of_few, of_many = (dict(shown(taken, labels)) for taken in (few, many))
    assert all(of_few[image] == of_many[image] for image in few.wrong)
    clean = taken_of(labels, identities=6)
    assert shown(many, labels) - shown(clean, labels) == {(image, of_many[image]) for image in many.wrong.tolist()}


# The long tail


@given(
    extra=st.lists(st.integers(0, 40), min_size=2, max_size=40),
    head=st.integers(1, 60),
    share=st.floats(0.02, 1),
    given_head=st.booleans(),
    seed=SEEDS,
)
def test_a_tail_falls_as_its_formula_says_and_reaches_its_ratio(extra, head, share, given_head, seed):
    ratio = max(1.0, share * head)
    counts = np.array([head + more for more in [0, *extra]])  # somebody has exactly as many as the head
    labels = people(counts)
    taken = taken_of(labels, long_tail__ratio=ratio, long_tail__head=head if given_head else None, long_tail__seed=seed)
    sizes = sorted(times(taken).values(), reverse=True)
    exact = head * ratio ** (-np.arange(len(counts)) / (len(counts) - 1))
    assert len(sizes) == len(counts)
    assert np.abs(sizes - exact).max() <= 0.5 + 1e-9
    told = taken.told["long_tail"]
    assert (told["largest"], told["smallest"], told["capped"]) == (head, sizes[-1], 0)
    assert told["ratio"] == head / sizes[-1]
    assert abs(sizes[-1] - head / ratio) <= 0.5 + 1e-9


def test_who_is_head_and_who_is_tail_is_a_function_of_seed_and_identity():
    """Not of who else is there, nor of how many images somebody has, nor of the other seeds."""
    counts = np.random.default_rng(0).integers(64, 400, 33)
    tail = {"long_tail__ratio": 64, "long_tail__head": 64, "long_tail__seed": 5}
    sizes = times(taken_of(people(counts), **tail))
    assert sizes == times(taken_of(people([70] * 33), **tail))
    assert sizes == times(taken_of(people(counts), **tail, seed=9, max_images=64))
    assert sizes != times(taken_of(people(counts), **{**tail, "long_tail__seed": 6}))
    few = times(taken_of(people(counts), **{**tail, "long_tail__ratio": 16}, identities=6))
    assert len(set(few.values())) == 6, "or the order is not told"
    assert sorted(few, key=lambda who: (-few[who], sizes[who])) == sorted(few, key=lambda who: (-sizes[who], -few[who]))


def test_class_size_is_not_confounded_with_the_person():
    counts = np.arange(50, 150)
    labels = people(counts)
    correlations = []
    for seed in range(200):
        sizes = times(taken_of(labels, long_tail__ratio=50, long_tail__seed=seed))
        correlations.append(np.corrcoef([sizes[who] for who in range(100)], counts)[0, 1])
    # Of a hundred people drawn at random: mean 0, standard deviation 0.1.
    assert abs(np.mean(correlations)) < 5 * 0.1 / np.sqrt(200)
    assert 0.07 < np.std(correlations) < 0.13


def test_who_has_too_few_for_the_place_is_told():
    labels = people([100] * 5 + [10] * 5)
    taken = taken_of(labels, long_tail__ratio=10, long_tail__head=100)
    assert (np.array(list(times(taken).values())) <= 100).all()
    told = taken.told["long_tail"]
    assert 0 < told["capped"] <= 5
    assert "ratio 10 where 9 was asked" in str(taken_of(people([10] * 5), long_tail__ratio=9))
    assert f"({told['capped']} identities have fewer images than their place asks for)" in str(taken)
    fine = taken_of(labels, long_tail__ratio=10, long_tail__head=100, min_images=100)
    assert fine.told["long_tail"]["capped"] == 0
    assert str(fine) == (
        f"took 5 of 10 identities, {len(fine.images)} of 550 images; long tail of 100 to 10 images, ratio 10"
    )


def test_a_ratio_of_one_is_a_balanced_set():
    taken = taken_of(people([7, 9, 30, 8]), long_tail__ratio=1)
    assert times(taken) == dict.fromkeys(range(4), 7)


# Noise


def test_flips_are_uniform_over_the_others():
    labels = people([400] * 6)
    found = np.zeros((6, 6), int)
    for seed in range(20):
        taken = taken_of(labels, noise__fraction=0.5, noise__seed=seed)
        np.add.at(found, (labels[taken.images], taken.labels), 1)
    assert (np.diag(found) > 3000).all()
    others = found[~np.eye(6, dtype=bool)]  # 24,000 flips on 30 pairs: 800, standard deviation 28
    assert others.sum() == 24_000
    assert np.abs(others - 800).max() < 5 * 28


def test_outliers_are_of_nobody_who_is_held_out_or_trained():
    labels = people([6] * 40)
    trained, held = hold_out(labels, 0.25, 3)
    taken = take(labels, trained, choose(identities=20, noise__fraction=0.3, noise__kind="outlier"))
    strangers = set(labels[taken.wrong])
    assert len(taken.wrong) == 36
    assert not strangers & set(held)
    assert not strangers & set(taken.identities)
    assert str(taken) == "took 20 of 30 identities, 120 of 180 images; 36 images of other people put in"


def test_recorded_values_never_change():
    """A resumed run, and an evaluation, must find the images that were trained on, whatever the version of facelab."""
    labels = np.repeat(np.arange(12), 8)
    words = {"identities": 0.5, "images": 0.5, "long_tail__ratio": 4, "noise__fraction": 0.2, "noise__kind": "outlier"}
    taken = taken_of(labels, **words)
    assert taken.identities.tolist() == IDENTITIES
    assert taken.images.tolist() == IMAGES
    assert taken_of(labels, noise__fraction=0.1).wrong.tolist() == WRONG


IDENTITIES = [1, 2, 4, 5, 6, 9]
IMAGES = [12, 17, 20, 23, 28, 36, 43, 52, 53, 74, 77, 89, 94]
WRONG = [1, 8, 9, 11, 22, 42, 56, 60, 71, 92]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"identities": 0.0}, r"data\.take\.identities is 0\.0: give how many, from 2 on, or a fraction"),
        ({"identities": 1.5}, r"identities is 1\.5: give"),
        ({"identities": 1}, r"identities is 1: give how many, from 2 on"),
        ({"identities": True}, r"identities is True: give"),
        ({"identities": "half"}, r"identities is 'half': give"),
        ({"identities": 11}, r"^data\.take\.identities is 11, but there are 10 to train on: give at most as many"),
        ({"identities": 9, "min_images": 9}, r"identities is 9, but there are 8 to train on with 9 images or more"),
        ({"identities": 0.1}, r"^data\.take leaves 1 of 10 identities .*at least 2 are needed"),
        ({"min_images": 12}, r"data\.take leaves 0 of 10 identities \(0 have data\.take\.min_images=12\)"),
        ({"images": 0}, r"images is 0: give a fraction above 0 and up to 1, or null for all"),
        ({"images": 1.1}, r"images is 1\.1: "),
        ({"images": float("nan")}, r"images is nan: "),
        ({"min_images": 0}, r"min_images is 0: give a whole number from 1 on"),
        ({"max_images": 0}, r"max_images is 0: give a whole number from 1 on, or null for all"),
        ({"seed": 0.5}, r"data\.take\.seed is 0\.5: give a whole number"),
        ({"long_tail__ratio": 0.5}, r"long_tail\.ratio is 0\.5: give a number from 1 on, or null"),
        (
            {"long_tail__ratio": 100},
            r"ratio is 100, but the first .* only 2 images .*min_images=100 or more",
        ),
        ({"long_tail__ratio": 9, "long_tail__head": 8}, r"has only 8 images \(data\.take\.long_tail\.head\)"),
        ({"long_tail__head": 0}, r"long_tail\.head is 0: "),
        ({"long_tail": None}, r"data\.take\.long_tail is None: change the keys below it one by one"),
        ({"noise__fraction": 1.0}, r"noise\.fraction is 1\.0: give a fraction from 0 on and below 1"),
        ({"noise__fraction": -0.1}, r"noise\.fraction is -0\.1: "),
        ({"noise__kind": "swap"}, r"noise\.kind is 'swap': give one of flip, outlier"),
        (
            {"noise__fraction": 0.2, "noise__kind": "outlier"},
            r"outlier takes 17 images of people who are left out of training, and there are 0: leave more people out",
        ),
    ],
)
def test_what_cannot_be_is_refused(changes, line):
    labels = people([10] * 8 + [2] * 2)
    with pytest.raises(ValueError, match=line):
        taken_of(labels, **changes)
