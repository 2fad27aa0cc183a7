"""The classes that a classifier names: those of a plain sort, also of equals, on one rank and on several."""

import numpy as np
import pytest
import torch
from ranks import on_ranks

from facelab.loss import naming
from facelab.loss.naming import name_classes


def reference(embeddings, centres, count, normalised):
    """(M,k) classes and similarities by float64 and Python's own sort, which keeps the order of equals."""
    x, w = embeddings.double().numpy(), centres.double().numpy()
    if normalised:
        x, w = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-30) for v in (x, w))
    table = x @ w.T
    order = np.array([sorted(range(len(w)), key=lambda c: -row[c])[:count] for row in table])
    return order, np.take_along_axis(table, order, axis=1)


def whole(normalised):
    """Whole numbers, so that products are exact and equal ones are equal; classes twice, so that there are some."""
    generator = torch.Generator().manual_seed(int(normalised))
    embeddings = torch.randint(-3, 4, (9, 4), generator=generator).float()
    centres = torch.randint(-3, 4, (5, 4), generator=generator).float()
    if normalised:  # lengths that are exact as well: along the axes
        axes = torch.randint(0, 4, (5,), generator=generator)
        centres = torch.nn.functional.one_hot(axes, 4).float() * 2
    return embeddings, centres.repeat(2, 1)[:9]


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("count", [1, 5, 20])
def test_named_as_by_a_plain_sort(normalised, count, monkeypatch):
    embeddings, centres = whole(normalised)
    monkeypatch.setattr(naming, "_BLOCK", 20)  # of two images
    classes, similarities = name_classes(embeddings, centres, 0, count, normalised)
    order, values = reference(embeddings, centres, count, normalised)
    assert np.array_equal(classes.numpy(), order)
    np.testing.assert_allclose(similarities.numpy(), values, rtol=1e-6, atol=1e-6)
    assert len(np.unique(similarities[:, :2].numpy())) > 2


def test_equal_similarities_come_in_the_order_of_classes():
    embeddings, centres = torch.ones(3, 2), torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 0.0], [1.0, 1.0]])
    assert name_classes(embeddings, centres, 0, 4, True)[0].tolist() == [[3, 0, 1, 2]] * 3
    assert name_classes(embeddings, centres, 0, 4, False)[0].tolist() == [[2, 3, 0, 1]] * 3
    assert name_classes(torch.zeros(1, 2), centres, 0, 2, True)[0].tolist() == [[0, 1]]


def test_a_number_that_is_none_is_not_hidden():
    named = name_classes(torch.tensor([[torch.nan, 1.0]]), torch.eye(2), 0, 1, True)[1]
    assert not named.isfinite().any()


def shards(rank, world, folder):
    for normalised in (False, True):
        embeddings, centres = whole(normalised)
        bounds = [len(centres) * r // world for r in range(world + 1)]
        for count in (1, 5, 20):
            alone = reference(embeddings, centres, count, normalised)
            mine = centres[bounds[rank] : bounds[rank + 1]]
            classes, similarities = name_classes(embeddings, mine, bounds[rank], count, normalised)
            np.testing.assert_array_equal(classes.numpy(), alone[0])
            np.testing.assert_allclose(similarities.numpy(), alone[1], rtol=1e-6, atol=1e-6)


def test_several_ranks_name_the_same(tmp_path):
    on_ranks((2, 3), shards, tmp_path)
