"""`band_limit.filtered_ratio` on a torch device."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .band_limit import FAR, LEAST_EXPOSURE, PRIOR_PHOTONS, fast_length, low_pass

F32 = NDArray[np.float32]


def filtered_ratio(
    device: torch.device, photons: F32, exposure: F32, smoothing: float, band: float, base: F32 | None = None
) -> F32:
    """(edge, edge, edge) photons over exposure without what varies faster than `band`; see `band_limit`."""
    counted, expected = (torch.from_numpy(np.ascontiguousarray(grid)).to(device) for grid in (photons, exposure))
    smooth_exposure = smoothed(expected, smoothing)
    if base is None:
        start = (smoothed(counted, smoothing) + PRIOR_PHOTONS) / (smooth_exposure + PRIOR_PHOTONS)
    else:
        start = torch.from_numpy(np.ascontiguousarray(base)).to(device)
    edge = len(start)
    size = fast_length(edge)
    keep = torch.from_numpy(low_pass(size, band)).to(device)
    excess, seen = (
        torch.fft.irfftn(torch.fft.rfftn(grid, (size,) * 3) * keep, (size,) * 3)[:edge, :edge, :edge]
        for grid in (counted - expected * start, expected)
    )
    ratio = start + excess / (torch.maximum(seen, LEAST_EXPOSURE * smooth_exposure) + PRIOR_PHOTONS)
    return np.asarray(((ratio + ratio.flip(0, 1, 2)) / 2).cpu().numpy())


def smoothed(cube: Tensor, width: float) -> Tensor:
    """A cube smoothed by a Gaussian of `width` voxels, cut off at `FAR` widths; beyond its faces it is as there."""
    reach = int(FAR * width + 0.5)
    step = torch.arange(-reach, reach + 1, dtype=torch.float64)
    kernel = (-0.5 * (step / width).square()).exp()
    weight = (kernel / kernel.sum()).tolist()
    for axis in range(3):
        length = cube.shape[axis]
        around = torch.arange(-reach, length + reach, device=cube.device).clamp(0, length - 1)
        wide = cube.index_select(axis, around)
        # not a convolution: those are rounded to ten bits on a GPU
        cube = torch.stack([w * wide.narrow(axis, k, length) for k, w in enumerate(weight)]).sum(0)
    return cube
