"""What neighbouring frames do alike from pass to pass, and a step ahead of it: warps of the map heal sooner.

A map that is warped a little, one region of the sphere turned against another, explains its frames nearly as well as
the right one: the frames of a region hold one another where they are. Each pass takes such a warp back by a few per
cent, long after single poses have come to rest. So the motion that frames looking along similar directions have in
common is measured, ω(d), and frames are merged a part of it further on, as in Nesterov's accelerated gradient
(Y. Nesterov, Soviet Math. Dokl. 27, 372, 1983). Poses themselves are never moved: they are found from the map.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from .rotations import RZ_PI, exp_map

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

POWERS = np.array([(i, j, 4 - i - j) for i in range(5) for j in range(5 - i)])
"""x^i y^j z^k of degree 4: on the sphere, all harmonics of degrees 0, 2 and 4; d and −d see alike."""

MOMENTUM = 0.7
"""Of the last pass's motion, how much frames are merged ahead. Never unstable below 1; 0.6 is best where a pass heals
6 % of a warp."""

FURTHEST = np.radians(10.0)
"""Frames that moved further went to another mode, not with their neighbours."""

FEWEST_FRAMES = 200
LEAST_SEEN = 1e-3
"""Patterns of motion that so few frames tell of, relative to the best known one, are left out."""


class PoseDrift:
    """The common motion of poses in the last pass.

    Attributes
    ----------
    coefficient : (15, 3) float64
        Of the products of `POWERS`: rotation vectors in rad, in the particle's frame.
    """

    def __init__(self) -> None:
        self.coefficient: F64 = np.zeros((len(POWERS), 3))
        self._forget()

    def _forget(self) -> None:
        self._normal, self._moment, self._frames = np.zeros((len(POWERS),) * 2), np.zeros((len(POWERS), 3)), 0

    def add(self, before: F32, now: F32) -> None:
        """Note poses (N, 3, 3) of the same frames in two passes; Rz(π) on the frame's side is no motion."""
        turned = [Rotation.from_matrix(now @ np.swapaxes(before @ h, -1, -2)).as_rotvec() for h in (np.eye(3), RZ_PI)]
        length = [np.linalg.norm(t, axis=1) for t in turned]
        motion = np.where((length[1] < length[0])[:, None], turned[1], turned[0])
        near = np.minimum(*length) < FURTHEST
        wave = _waves(now[near])
        self._normal += wave.T @ wave
        self._moment += wave.T @ motion[near]
        self._frames += int(near.sum())

    def settle(self, updates: int, arrived: bool) -> None:
        """A pass with so many updates of the map is over: what moved in it is the motion from now on, per update.

        Where in it all photons have come to be scored, it has `arrived`: poses moved because more of the map was seen,
        and will not go on as they did.
        """
        self.coefficient[:] = 0
        if self._frames >= FEWEST_FRAMES and not arrived:
            self.coefficient[:] = np.linalg.lstsq(self._normal, self._moment, rcond=LEAST_SEEN)[0] / updates
        self._forget()

    def ahead(self, rotation: F32) -> F32:
        """(J, 3, 3) poses a step further on."""
        if not self.coefficient.any():
            return rotation
        step = exp_map(MOMENTUM * (_waves(rotation) @ self.coefficient))
        return np.asarray(step.astype(np.float32) @ rotation)


def _waves(rotation: F32) -> F64:
    """(N, 15) the products of `POWERS` at the poses' viewing directions."""
    power = rotation[:, None, :, 2].astype(np.float64) ** POWERS
    return np.asarray(power.prod(-1))
