"""Point groups: the proper rotations that leave a particle's intensity unchanged."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation


def point_group(name: str) -> NDArray[np.float64]:
    """Proper rotations of a point group in Schoenflies notation.

    Parameters
    ----------
    name : str
        ``"C1"``, ``"C4"``, ``"D5"``, ``"T"``, ``"O"``, ``"I"``. The main axis of C and D is z; D has a two-fold
        axis along x; T, O and I have two-fold axes along x, y and z.

    Returns
    -------
    (n, 3, 3) float64
        The identity first.

    Raises
    ------
    ValueError
        If the name is none of these.
    """
    group = name.strip().upper()
    if not re.fullmatch(r"[CD][1-9]\d*|[TOI]", group):
        raise ValueError(f"{name!r} is no point group; give C1, C2, …, D2, D3, …, T, O or I")
    matrices: NDArray[np.float64] = Rotation.create_group(group).as_matrix()
    identity_first = np.argsort(-np.trace(matrices, axis1=1, axis2=2), kind="stable")
    return matrices[identity_first]
