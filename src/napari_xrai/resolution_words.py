"""The resolution of a result, in words."""

from __future__ import annotations

import numpy as np

from .core.frames import Snapshot


def resolution_q(snapshot: Snapshot) -> float | None:
    """|q| where the half-sets cease to correlate ½, in the intensity's units; None until there are halves."""
    found = snapshot.history.get("resolution_q", np.zeros(0))[-1:]
    return float(found[0]) if len(found) and found[0] > 0 else None


def resolution_words(snapshot: Snapshot) -> str:
    """``"12.3 Å"``; ``"30.2 voxels"`` of |q| where there is no wavelength; nothing where there is none to believe."""
    if snapshot.verdict == "failed":
        return ""
    if snapshot.resolution_A is not None:
        return f"{snapshot.resolution_A:.3g} Å"
    q = resolution_q(snapshot)
    return f"{q:.3g} voxels" if q is not None and snapshot.intensity.units == "detector_voxel" else ""
