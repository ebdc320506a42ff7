"""A verdict is never better than the worst of what it rests on."""

import pytest

from napari_xrai.core.verdict import Signs, judge, so_far

GOOD = {
    "sampled": True, "used": 4000, "junk": 100, "starts": 5, "agreement": 0.95, "settled": 0.98, "gaining": False,
    "contrast": 0.9, "off_centre": 0.05, "crowding": 0.1, "group_named": False, "asymmetric": True, "looks_like": "",
}  # fmt: skip


def test_a_run_with_nothing_against_it_has_converged():
    assert judge(Signs(**GOOD))[0] == "converged"


@pytest.mark.parametrize(
    ("what", "verdict", "word"),
    [
        ({"sampled": False}, "failed", "speckles"),
        ({"off_centre": 0.3}, "failed", "mirror"),
        ({"agreement": 0.6}, "failed", "different particles"),
        ({"contrast": 0.3}, "failed", "30%"),
        ({"crowding": 1.5, "group_named": True}, "failed", "point group"),
        ({"crowding": 0.6}, "improving", "several particles"),
        ({"crowding": 1.5, "asymmetric": False, "looks_like": "D5"}, "converged", "name that symmetry"),
        ({"junk": 5000}, "failed", "fit no pose"),
        ({"used": 150}, "improving", "200 frames"),
        ({"settled": 0.5}, "improving", "more frames"),
        ({"settled": 0.5, "looks_like": "D5"}, "improving", "looks like D5"),
        ({"settled": 0.5, "looks_like": "D5", "gaining": True}, "improving", "more passes"),
        ({"looks_like": "O"}, "converged", "looks like O: name that symmetry"),
        ({"settled": 0.9, "gaining": True}, "improving", "more passes"),
    ],
)
def test_one_thing_against_it_is_enough_and_is_named(what, verdict, word):
    found, reason = judge(Signs(**{**GOOD, **what}))
    assert found == verdict and word in reason


def test_what_no_pass_will_mend_is_said_from_the_start():
    for wrong, word in (({"sampled": False, "off_centre": 0.0}, "speckles"), ({"off_centre": 0.4}, "mirror")):
        verdict, reason = so_far("start 1", 0.0, **{"sampled": True, **wrong})
        assert verdict == "failed" and word in reason
        assert (verdict, reason) == judge(Signs(**{**GOOD, **wrong}))  # as at the end
    verdict, reason = so_far("start 1", None, sampled=True, off_centre=0.1)
    assert verdict == "improving" and "not found yet" in reason and "%" not in reason
    verdict, reason = so_far("pass 2 of 8", 0.5, sampled=True, off_centre=0.1)
    assert verdict == "improving" and reason.endswith("50% of the poses stayed within 10° at the last update")
