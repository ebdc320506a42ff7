"""A verdict is never better than the worst of what it rests on."""

import pytest

from napari_xrai.core.verdict import judge

GOOD = {
    "sampled": True, "used": 4000, "junk": 100, "starts": 5, "agreement": 0.95, "settled": 0.98, "gaining": False,
    "contrast": 0.9, "crowding": 0.1,
}  # fmt: skip


def test_a_run_with_nothing_against_it_has_converged():
    assert judge(**GOOD)[0] == "converged"


@pytest.mark.parametrize(
    ("what", "verdict", "word"),
    [
        ({"sampled": False}, "failed", "speckles"),
        ({"agreement": 0.6}, "failed", "different particles"),
        ({"contrast": 0.3}, "failed", "30%"),
        ({"crowding": 1.5}, "failed", "point group"),
        ({"junk": 5000}, "failed", "fit no pose"),
        ({"used": 150}, "improving", "200 frames"),
        ({"settled": 0.5}, "improving", "more passes"),
        ({"settled": 0.9, "gaining": True}, "improving", "more passes"),
    ],
)
def test_one_thing_against_it_is_enough_and_is_named(what, verdict, word):
    found, reason = judge(**{**GOOD, **what})
    assert found == verdict and word in reason
