"""Modality masks: equal to the released generators', scenario by scenario."""

import json
from pathlib import Path

import numpy as np
import pytest

from datamodules.errors import InputError
from datamodules.image_text.modality import Aligned, CrossModal, Hybrid, Missing

GOLDEN = json.loads((Path(__file__).parent / "golden" / "heterogeneity.json").read_text())
SCENARIOS = {
    **{f"missing/rate{rate}": Missing(rate) for rate in (0.3, 0.4, 0.5)},
    **{f"cross_modal/image_clients{n}": CrossModal(n) for n in (3, 5, 7)},
    **{f"hybrid/rate{rate}": Hybrid(rate) for rate in (0.2, 0.3, 0.4)},
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_masks_equal_the_released_ones(name):
    golden = [GOLDEN[name][str(client)] for client in range(10)]
    masks = SCENARIOS[name].masks([len(rows) for rows in golden])
    assert [mask.astype(int).tolist() for mask in masks] == [[row[1:] for row in rows] for rows in golden]


def test_every_golden_scenario_is_tested():
    assert set(SCENARIOS) == set(GOLDEN) - {"manifest", "note", "partition"}


def test_aligned_keeps_everything():
    assert [mask.tolist() for mask in Aligned().masks([1, 2])] == [[[True, True]], [[True, True]] * 2]


def test_missing_can_lose_both():
    mask = Missing(0.5).masks([4000])[0]
    kept = np.bincount(mask[:, 0] * 2 + mask[:, 1], minlength=4) / 4000
    assert np.allclose(kept, 0.25, atol=0.03)


def test_hybrid_never_leaves_a_sample_empty_and_medical_clients_get_one_modality():
    by_sample, by_client = (Hybrid(1.0, comes_back=to).masks([50, 50]) for to in ("sample", "client"))
    for mask in [*by_sample, *by_client]:
        assert (mask.sum(1) == 1).all()
    assert all(len(np.unique(mask[:, 0])) == 2 for mask in by_sample)
    assert all(len(np.unique(mask[:, 0])) == 1 for mask in by_client)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Missing(30), "rate between 0 and 1, found 30"),
        (lambda: Hybrid(0.2, comes_back="never"), "'sample' or 'client'"),
        (lambda: CrossModal(3).masks([5, 5]), "0 to 2 image clients, found 3"),
    ],
)
def test_mistakes_are_told(make, told):
    with pytest.raises(InputError, match=told):
        make()
