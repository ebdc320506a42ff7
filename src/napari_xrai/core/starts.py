"""Starts from different noise: which one goes on, how far others agree with it, and whether that is enough."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .agreement import intensity_agreement

F32 = NDArray[np.float32]

MOST_STARTS, MOST_STARTS_IN_A_GROUP = 5, 12
"""A named point group makes starts cheap, and most go wrong."""

AGREEMENT, DISAGREEMENT = 0.9, 0.75
"""Two starts whose intensities correlate so well, after rotation, have found the same particle; or so badly, another
one. In between, few or dim frames leave that much noise.
"""

ALONE = 1.6
"""So many times more starts are made while none agrees with the likeliest."""

CROWDED, CROWDED_IN_A_GROUP = 0.7, 0.4
"""Unevenness of views beyond chance, above which two starts that agree may both be wrong: then more are made. Right
ones have 0.05 to 0.5, but 0.7 and more where nobody named their symmetry. In a named group such starts count for
nothing: right ones have 0.06.
"""


class Starts:
    """The starts so far.

    Parameters
    ----------
    edge : int
        Voxels along an edge of their intensities.
    inner : float
        Radius of the beam stop, voxels.
    named_group : bool
        A point group is named: views crowd in wrong starts only. Without one, frames of a symmetric particle may
        rightly lie in any of its equal views.
    """

    def __init__(self, edge: int, inner: float, named_group: bool) -> None:
        self.edge, self.inner, self.named_group = edge, inner, named_group
        self.made = 0
        self.best = -np.inf
        self.agreement = 0.0
        """Of the likeliest start with any other."""
        self._leader = -1
        self._found: list[F32] = []
        self._crowded: list[bool] = []
        self._agreement: dict[tuple[int, int], float] = {}

    def add(self, ratio: F32, radius: float, likelihood: float, crowding: float) -> bool:
        """Take in a start's intensity ratio (edge³), known to `radius` voxels; return whether it is the likeliest."""
        self.made += 1
        leads = likelihood > self.best
        crowded = crowding > (CROWDED_IN_A_GROUP if self.named_group else CROWDED)
        self.best = max(self.best, likelihood)
        if crowded and self.named_group:
            if leads:
                self._leader, self.agreement = -1, 0.0
            return leads
        new = len(self._found)
        for old, other in enumerate(self._found):
            self._agreement[old, new] = intensity_agreement(ratio, other, self.edge, self.inner, radius)
        self._found.append(ratio)
        self._crowded.append(crowded)
        if leads:
            self._leader = new
        self.agreement = max((a for pair, a in self._agreement.items() if self._leader in pair), default=0.0)
        return leads

    @property
    def enough(self) -> bool:
        """Whether another start would be idle."""
        most = MOST_STARTS_IN_A_GROUP if self.named_group else MOST_STARTS
        if self.made >= int(most * (ALONE if self.agreement < DISAGREEMENT and not self.named_group else 1)):
            return True
        return any(
            a > AGREEMENT and self._leader in pair and not any(self._crowded[i] for i in pair)
            for pair, a in self._agreement.items()
        )
