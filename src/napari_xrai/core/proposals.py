"""Who names candidate poses, the search or the encoder: whichever costs less on these frames."""

from __future__ import annotations

SLEEP_S, SLEEP_POWER = 1.9, 0.9
"""CPU seconds that the encoder sleeps after an update of the field at 64 × 64 pixels, growing with this power of the
side."""

SAVED_US, SAVED_POWER = 95.0, 0.5
SAVED_US_PER_PHOTON, PHOTON_POWER = 0.05, 1.3
"""CPU microseconds by which poses cost less per frame when the encoder names them: it names fewer that are as good.

All measured on simulated 4BED at 64² and 128² pixels and 75 to 5,000 photons (``benchmarks/proposals.py``); within a
fifth of that table.
"""

LARGEST_SIDE, MOST_PHOTONS = 2.0, 5000.0
"""As far as that was measured, side in 64 pixels. It does not go on so: at 50,000 photons the search is cheaper."""


def choose_proposals(n_pixels: int, photons: float, frames_per_update: float) -> tuple[str, str]:
    """``search`` or ``encoder``, and why, in words.

    The encoder names poses several times as fast as the exact search and as well, but must sleep after every update of
    the field. So it pays where updates are rare, and the sooner the brighter and finer frames are.

    Parameters
    ----------
    n_pixels : int
        Usable pixels.
    photons : float
        Per frame, on average.
    frames_per_update : float
        Frames whose poses are inferred between two updates of the field.
    """
    side, photons = min(n_pixels**0.5 / 64, LARGEST_SIDE), min(photons, MOST_PHOTONS)
    saved_s = 1e-6 * (SAVED_US * side**SAVED_POWER + SAVED_US_PER_PHOTON * photons * side**PHOTON_POWER)
    pays_from = SLEEP_S * side**SLEEP_POWER / saved_s
    chosen = "encoder" if frames_per_update >= pays_from else "search"
    pays = f"the encoder pays from {float(f'{pays_from:.2g}'):,.0f} frames an update"
    return chosen, f"{chosen}: {pays}, here {frames_per_update:,.0f}"
