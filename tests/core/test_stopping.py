"""Passes go on while the particle is being found, and end before noise is."""

import json

import numpy as np
import pytest

from napari_xrai.core.stopping import another_pass_pays


def last_pass(likelihood, settled):
    """Number of the pass after which a run with this history ends."""
    gain = np.diff(likelihood)
    for n in range(1, len(gain)):
        if not another_pass_pays(gain[n], gain[n - 1], likelihood[n], settled[n + 1], 0.0):
            return n + 2
    pytest.fail("it never ends")


def test_frames_on_their_way_to_a_likelier_mode_are_waited_for():
    # 2CEX at 200 photons, two frames in five half a turn away at the third figure, one in seventy at the last but one
    likelihood = [53.640, 54.711, 55.011, 55.465, 56.006, 56.822, 58.068, 59.134, 59.414, 59.529, 59.564]
    settled = [0.873, 0.897, 0.902, 0.902, 0.894, 0.870, 0.878, 0.958, 0.986, 0.992, 0.995]
    assert last_pass(likelihood, settled) == len(likelihood)


def test_poses_at_rest_that_begin_to_gather_in_noise_are_stopped():
    # a background as bright as the particle: pose errors grow from the first of these figures on, 4.3 to 5.6°
    likelihood = [142.118, 142.257, 142.403, 142.670, 143.051, 143.660, 144.897]
    settled = [0.989, 0.986, 0.982, 0.977, 0.980, 0.957, 0.946]
    assert last_pass(likelihood, settled) <= 4


def test_whether_a_pass_pays_can_be_saved():
    assert json.dumps(another_pass_pays(1.0, 2.0, np.float64(100.0), np.float64(0.9), 0.0)) == "true"


def test_a_gain_that_junk_left_behind_is_no_runaway():
    assert not another_pass_pays(9.0, 1.2, 175.0, 0.99, cleared=0.0)
    assert another_pass_pays(9.0, 1.2, 175.0, 0.99, cleared=0.09)
    assert not another_pass_pays(0.05, 9.0, 184.0, 0.99, cleared=0.09)
