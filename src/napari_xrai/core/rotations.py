"""Rotations: quaternions, grids on SO(3), geodesics, and the global alignment of two sets of poses.

Rotation matrices are (…, 3, 3) and act on column vectors; quaternions are (…, 4), scalar last (x, y, z, w); angles
are in radians unless the name says degrees.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

if TYPE_CHECKING:
    import torch

RZ_PI = np.diag([-1.0, -1.0, 1.0])
"""Half a turn about the beam: R and R·Rz(π) see the same image on a flat Ewald sphere (Friedel)."""

Matrices = NDArray[np.float64]


def quaternion_to_matrix(quaternion: NDArray[Any]) -> Matrices:
    """(…, 4) quaternions x, y, z, w, of any non-zero length, to (…, 3, 3) rotation matrices."""
    q = np.asarray(quaternion, np.float64)
    matrix: Matrices = Rotation.from_quat(q.reshape(-1, 4)).as_matrix()
    return matrix.reshape(*q.shape[:-1], 3, 3)


def matrix_to_quaternion(matrix: NDArray[Any]) -> NDArray[np.float64]:
    """(…, 3, 3) rotation matrices to (…, 4) unit quaternions x, y, z, w with w ≥ 0."""
    m = np.asarray(matrix, np.float64)
    quaternion: NDArray[np.float64] = Rotation.from_matrix(m.reshape(-1, 3, 3)).as_quat(canonical=True)
    return quaternion.reshape(*m.shape[:-2], 4)


def random_rotations(n: int, rng: np.random.Generator) -> Matrices:
    """(n, 3, 3) rotations, uniform on SO(3): normalised 4D Gaussians are uniform unit quaternions."""
    return quaternion_to_matrix(rng.normal(size=(n, 4)))


def super_fibonacci(n: int) -> Matrices:
    """(n, 3, 3) rotations spread evenly over SO(3).

    Super-Fibonacci spirals: M. Alexa, "Super-Fibonacci Spirals: Fast, Low-Discrepancy Sampling of SO(3)", CVPR 2022,
    algorithm 1. SO(3) measures 8π² rad³, so neighbours are about (8π²/n)^(1/3) rad apart.
    """
    phi, psi = np.sqrt(2.0), 1.533751168755204288118041  # psi⁴ = psi + 4
    s = np.arange(n) + 0.5
    inner, outer = np.sqrt(s / n), np.sqrt(1 - s / n)
    alpha, beta = 2 * np.pi * s / phi, 2 * np.pi * s / psi
    quaternion = np.stack(
        [inner * np.sin(alpha), inner * np.cos(alpha), outer * np.sin(beta), outer * np.cos(beta)], axis=-1
    )
    return quaternion_to_matrix(quaternion)


def fibonacci_directions(n: int) -> NDArray[np.float64]:
    """(n, 3) unit vectors spread evenly over the sphere, from +z down to −z (golden-angle spiral)."""
    i = np.arange(n) + 0.5
    z = 1 - 2 * i / n
    azimuth = i * np.pi * (3 - np.sqrt(5.0))
    radius = np.sqrt(1 - z * z)
    return np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), z], axis=-1)


def direction_to_rotation(direction: NDArray[Any]) -> Matrices:
    """(…, 3) unit vectors to (…, 3, 3) rotations whose third column is that vector: Rz(azimuth)·Ry(polar angle)."""
    x, y, z = np.moveaxis(np.asarray(direction, np.float64), -1, 0)
    azimuth, sine = np.arctan2(y, x), np.hypot(x, y)
    c, s, zero = np.cos(azimuth), np.sin(azimuth), np.zeros_like(z)
    rows = [[c * z, -s, c * sine], [s * z, c, s * sine], [-sine, zero, z]]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def rotation_z(angle: NDArray[Any] | float) -> Matrices:
    """(…) angles to (…, 3, 3) rotations about z: the in-plane rotation of a frame."""
    angle = np.asarray(angle, np.float64)
    c, s, zero = np.cos(angle), np.sin(angle), np.zeros_like(angle)
    rows = [[c, -s, zero], [s, c, zero], [zero, zero, zero + 1]]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def exp_map(rotation_vector: NDArray[Any]) -> Matrices:
    """(…, 3) rotation vectors (axis × angle) to (…, 3, 3) rotations."""
    w = np.asarray(rotation_vector, np.float64)
    matrix: Matrices = Rotation.from_rotvec(w.reshape(-1, 3)).as_matrix()
    return matrix.reshape(*w.shape[:-1], 3, 3)


def rotation_from_6d(x: torch.Tensor) -> torch.Tensor:
    """(…, 6) numbers to (…, 3, 3) rotations, differentiably: Gram–Schmidt on two columns of three.

    Continuous, unlike any 4-number form: Zhou et al., "On the Continuity of Rotation Representations in Neural
    Networks", CVPR 2019. The first three numbers are the first column before normalisation.
    """
    import roma  # here: commands that only read poses never wait for torch

    matrix: torch.Tensor = roma.special_gramschmidt(x.reshape(*x.shape[:-1], 2, 3).mT)
    return matrix


def geodesic_angle(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Angle of the rotation between `a` and `b`, (…, 3, 3) each, broadcast; in radians, 0…π.

    From the chord ‖a − b‖ = 2√2 sin(θ/2): exact for small angles, where the trace loses half the digits.
    """
    chord = np.linalg.norm(np.asarray(a, np.float64) - np.asarray(b, np.float64), axis=(-2, -1))
    angle: NDArray[np.float64] = 2 * np.arcsin(np.minimum(chord / np.sqrt(8.0), 1.0))
    return angle


def nearest_rotation(matrix: NDArray[Any]) -> Matrices:
    """The rotation nearest to a (3, 3) matrix (orthogonal Procrustes by SVD)."""
    u, _, vt = np.linalg.svd(matrix)
    return np.asarray(u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt)


def align_poses(
    estimated: NDArray[Any], true: NDArray[Any], point_group: NDArray[Any] | None = None
) -> tuple[Matrices, NDArray[np.float64]]:
    """One global rotation G that lays the estimated poses over the true ones, and what is left.

    The error of frame n is the least angle between ``S G R_est[n] K`` and ``R_true[n]``, over S in the point group
    (in the frame of the truth) and K in {1, Rz(π)}. Robust: pairs of poses propose G, the one that most frames agree
    with wins and is refined on those frames, so a majority of wrong poses does no harm.

    Parameters
    ----------
    estimated, true : (N, 3, 3)
        Rotations lab → particle of the same frames, in the same order.
    point_group : (n, 3, 3), optional
        Proper rotations of the intensity; C1 if not given.

    Returns
    -------
    G : (3, 3) float64
        Estimated particle frame → true particle frame.
    errors_deg : (N,) float64

    Raises
    ------
    ValueError
        If there are no frames, or the shapes differ.
    """
    estimated, true = np.asarray(estimated, np.float64), np.asarray(true, np.float64)
    if estimated.shape != true.shape or estimated.ndim != 3 or not len(true):
        raise ValueError(f"poses of shape {estimated.shape} cannot be aligned to poses of shape {true.shape}")
    group = np.eye(3)[None] if point_group is None else np.asarray(point_group, np.float64)
    few, some = _evenly(len(true), 200), _evenly(len(true), 4000)
    # a pair of equal frames says G = R_true K R_estᵀ; its group copies S·G score the same, so they are left out
    candidates = _proposals(estimated[few], true[few], group[:1]).reshape(-1, 9)
    voters = _proposals(estimated[few], true[few], group)
    votes = [_agreement(_best_proposal(g.reshape(3, 3), voters)[1], width_deg=12.0).sum() for g in candidates]
    leaders = candidates[np.argsort(votes)[-5:]].reshape(-1, 3, 3)
    fits = [_polish(g, _proposals(estimated[some], true[some], group)) for g in leaders]
    rotation = max(fits, key=lambda fit: fit[1])[0]
    errors = [
        _best_proposal(rotation, _proposals(estimated[i : i + 2000], true[i : i + 2000], group))[1]
        for i in range(0, len(true), 2000)
    ]
    return rotation, np.degrees(np.concatenate(errors))


def _evenly(n: int, at_most: int) -> NDArray[np.int64]:
    """Positions of at most so many of n frames, evenly spread."""
    return np.unique(np.linspace(0, n - 1, min(n, at_most)).astype(np.int64))


def _proposals(estimated: Matrices, true: Matrices, group: Matrices) -> Matrices:
    """(N, K, 3, 3): every G that would make frame n exact, ``Sᵀ R_true K R_estᵀ``."""
    flips = np.stack([np.eye(3), RZ_PI])
    right = np.einsum("nij,kjl,nml->nkim", true, flips, estimated)
    both = np.einsum("sji,nkjl->nskil", group, right)
    return np.asarray(both.reshape(len(true), -1, 3, 3))


def _best_proposal(rotation: Matrices, proposals: Matrices) -> tuple[Matrices, NDArray[np.float64]]:
    """For each frame the proposal nearest to `rotation`, (N, 3, 3), and its angle from it, (N,) radians."""
    cosines = proposals.reshape(*proposals.shape[:2], 9) @ rotation.reshape(9)
    best = proposals[np.arange(len(proposals)), cosines.argmax(1)]
    return best, geodesic_angle(rotation, best)


def _agreement(angle: NDArray[np.float64], width_deg: float) -> NDArray[np.float64]:
    """A vote between 0 and 1; poses that are plainly wrong have none."""
    return np.exp(-0.5 * np.square(np.degrees(angle) / width_deg))


def _polish(rotation: Matrices, proposals: Matrices) -> tuple[Matrices, float]:
    """Move `rotation` to the weighted mean of the proposals near it until it rests; return it and its votes."""
    for _ in range(30):
        best, angle = _best_proposal(rotation, proposals)
        moved = nearest_rotation(np.einsum("n,nij->ij", _agreement(angle, width_deg=8.0) + 1e-12, best))
        if geodesic_angle(rotation, moved) < 1e-6:
            break
        rotation = moved
    return rotation, float(_agreement(_best_proposal(rotation, proposals)[1], width_deg=8.0).sum())
