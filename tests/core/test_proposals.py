"""Search or encoder: the measured costs decide, and the words say so."""

import pytest

from napari_xrai.core.proposals import choose_proposals


@pytest.mark.parametrize(
    ("side", "photons", "measured"),
    [(64, 75, 18_000), (64, 500, 13_000), (64, 5000, 7000), (128, 75, 25_000), (128, 500, 17_000), (128, 5000, 5000)],
)
def test_it_changes_where_the_measured_costs_cross(side, photons, measured):
    assert choose_proposals(side**2, photons, measured / 1.4)[0] == "search"
    assert choose_proposals(side**2, photons, measured * 1.4)[0] == "encoder"


def test_the_reason_names_both_numbers():
    chosen, why = choose_proposals(64**2, 500, 4000)
    assert chosen == "search"
    assert why == "search: the encoder pays from 16,000 frames an update, here 4,000"
