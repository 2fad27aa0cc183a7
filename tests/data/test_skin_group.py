import pickle

import numpy as np
import pytest

from facelab.data.skin_group import SkinGroup
from facelab.data.synthetic import SyntheticFaces, melanin

DEFAULT = {"identities": 5, "images_per_identity": 2, "size": 32, "nuisance": 1, "skin": [0.5, 1.0], "seed": 5}


def group(**changes):
    return SkinGroup(**{**DEFAULT, **changes})


def test_it_has_the_first_people_of_such_skin():
    one = group()
    numbers = [int(name.split()[1]) for name in one.identity_names]
    dark = [number for number in range(numbers[-1] + 1) if melanin(5, number) >= 0.5]
    assert numbers == dark[:5] != list(range(5))
    everybody = SyntheticFaces(numbers[-1] + 1, 2, 32, 1, 1, 5)
    for identity, number in enumerate(numbers):
        for sample in range(2):
            np.testing.assert_array_equal(one.load(2 * identity + sample), everybody.load(2 * number + sample))


def test_groups_of_disjoint_skin_have_nobody_in_common_and_travel_to_other_processes():
    fair, dark = group(skin=[0.0, 0.35]), group()
    assert not np.array_equal(fair.load(3), dark.load(3))
    assert not set(fair.identity_names) & set(dark.identity_names)
    again = pickle.loads(pickle.dumps(dark))
    assert again.identity_names == dark.identity_names
    np.testing.assert_array_equal(again.load(3), dark.load(3))


@pytest.mark.parametrize("skin", [[0.5], [0.5, 0.5], [0.6, 0.4], [-0.1, 1], [0, 1.1], [0.1, 0.2, 0.3]])
def test_ranges_that_are_none(skin):
    with pytest.raises(ValueError, match=r"data\.skin is \["):
        group(skin=skin)


def test_too_few_such_people(monkeypatch):
    monkeypatch.setattr("facelab.data.skin_group._TRIES", 1)
    with pytest.raises(ValueError, match=r"data\.skin is \[0\.5, 1\.0\]: only \d of 5 people have such skin"):
        group()
