"""One look at a reconstruction: converged, improving or failed, with the reason in words."""

from __future__ import annotations

from dataclasses import dataclass

from .frames import Verdict
from .starts import DISAGREEMENT
from .stopping import AT_REST

SETTLED = 0.75
"""Part of the poses that stay within 10° from pass to pass though a particle's equal views are not named."""

FEW_FRAMES = 200
"""Below so many used frames nothing is called converged: whole regions of the volume rest on single frames."""

LEAST_CONTRAST = 0.5
"""Part of the speckles' amplitude, which pairs of photons tell without any pose, that a right intensity shows."""

OFF_CENTRE = 0.2
"""Speckles from the beam to where photons mirror: at 0.28 starts agree on a particle that is wrong."""

CROWDED_VIEWS = 1.0
"""Unevenness of views, beyond chance, in a named point group that no sample comes with."""

UNEVEN_VIEWS = 0.5
"""Unevenness beyond which a particle without symmetry may be several: frames of one in all orientations have at most
0.1, 0.24 with a tenth of junk; frames of two particles 1.2, of many 0.7, half and a fifth of noise 2.7 and 1.0. Where a
symmetry is seen it proves nothing: frames may lie in any of a particle's equal views.
"""


@dataclass(frozen=True)
class Signs:
    """What a verdict rests on, once all passes are made.

    Attributes
    ----------
    sampled : bool
        Neighbouring pixels light together: the frames hold speckles.
    off_centre : float
        Speckles between the beam and where photons mirror.
    used, junk : int
        Frames.
    starts : int
        At most so many were made from different noise.
    agreement : float
        Best correlation of two starts' intensities, after rotation.
    settled : float
        Part of the poses that stayed at the last pass.
    gaining : bool
        Another pass would pay.
    contrast : float
        Part of the speckles' amplitude that the intensity has.
    crowding : float
        Of the views, those that a named point group makes equal included.
    group_named : bool
    asymmetric : bool
        No symmetry is to be seen in the intensity, and none was named.
    looks_like : str
        Point group that nobody named and the intensity looks as if it had, or nothing.
    """

    sampled: bool
    off_centre: float
    used: int
    junk: int
    starts: int
    agreement: float
    settled: float
    gaining: bool
    contrast: float
    crowding: float
    group_named: bool
    asymmetric: bool
    looks_like: str


def so_far(phase: str, settled: float | None, sampled: bool, off_centre: float) -> tuple[Verdict, str]:
    """The verdict on a reconstruction under way, failed where no pass will mend it.

    Parameters as in `Signs`; `settled` is None before a start was chosen to go on from.
    """
    if reason := hopeless(sampled, off_centre):
        return "failed", reason
    if settled is None:
        return "improving", f"{phase}: the particle is not found yet"
    return "improving", f"{phase}: {settled:.0%} of the poses stayed within 10° at the last update"


def hopeless(sampled: bool, off_centre: float) -> str:
    """What no pass will mend, known before the first; nothing where there is hope. Parameters as in `Signs`."""
    if not sampled:
        return "neighbouring pixels do not light together: these frames hold no speckles to tell a pose by"
    if off_centre > OFF_CENTRE:
        return f"photons mirror {off_centre:.2f} speckles beside the beam: begin again with the beam centre on auto"
    return ""


def judge(signs: Signs) -> tuple[Verdict, str]:
    """The verdict on a reconstruction that has made all its passes, and why."""
    if reason := hopeless(signs.sampled, signs.off_centre):
        return "failed", reason
    if signs.agreement < DISAGREEMENT:
        return "failed", f"{signs.starts} starts from different noise found different particles"
    if signs.contrast < LEAST_CONTRAST:
        kept = f"{signs.contrast:.0%} of the speckles' contrast"
        return "failed", f"the intensity has only {kept} that pairs of photons show"
    if signs.group_named and signs.crowding > CROWDED_VIEWS:
        return "failed", "frames crowd in a few views of the point group: try another seed, or another group"
    if signs.junk > signs.used:
        share = signs.junk / (signs.junk + signs.used)
        return "failed", f"{share:.0%} of the frames fit no pose: look at them, and at the mask"
    if signs.used < FEW_FRAMES:
        return "improving", f"fewer than {FEW_FRAMES} frames are too few to be sure: give it more"
    if signs.asymmetric and signs.crowding > UNEVEN_VIEWS:
        return "improving", (
            "poses crowd along few directions: frames of several particles do that, noise among them, or a particle "
            "that lay aligned; sort the frames before you believe the map"
        )
    if signs.settled < (AT_REST if signs.gaining else SETTLED):
        remedy = ": give it more passes" if signs.gaining else ", which gained nothing: it wants more frames"
        if signs.looks_like and not signs.gaining:
            remedy = f": it looks like {signs.looks_like}, whose equal views poses move between; name it if it is true"
        return "improving", f"only {signs.settled:.0%} of the poses stayed at the last pass{remedy}"
    reason = f"independent starts agree to {signs.agreement:.2f}, {signs.settled:.0%} of the poses stay"
    if signs.looks_like:
        reason += f"; it looks like {signs.looks_like}: name that symmetry, if it is true, for a sharper map"
    return "converged", reason
