"""A toy engine and a toy source: the smallest things a Session can run, so that its promises can be tested alone."""

import time
from pathlib import Path

import numpy as np

from napari_xrai.core.frames import Counters, Detector, Frames, Poses, Progress, Snapshot, Volume


def toy_detector(side=6, **changes):
    axis = (np.arange(side) - (side - 1) / 2) * 0.02
    x, y = (a.ravel() for a in np.meshgrid(axis, axis))
    q = np.stack([x, y, np.sqrt(1 - x**2 - y**2) - 1], axis=-1)
    given = {"mask": np.zeros(side**2, np.uint8), "shape": (side, side), **changes}
    return Detector(q=q, response=np.ones(side**2), ewald_radius=1.0, **given)


class ToySource:
    format = "toy frames"
    paths = (Path("toy.emc"),)

    def __init__(self, n_frames=200, side=6, photons=3.0, detector=None):
        self.n_frames, self.shape, self.n_pixels = n_frames, (side, side), side**2
        self.detector = detector or toy_detector(side)
        self.counts = np.random.default_rng(0).poisson(photons, (n_frames, side, side))

    def batches(self, size, start=0):
        for first in range(start, self.n_frames, size):
            yield Frames.from_dense(self.counts[first : first + size], first)

    def read(self, frames):
        return Frames.from_dense(self.counts[frames])


class ToyReconstruction:
    """Counts the photons of every frame, slowly; its pose of frame n is a turn about z that grows with each pass."""

    batch_size = 20
    verdict, reason = "improving", "the toy always improves"

    def __init__(self, passes=3, step_s=0.005, fail_at=None, error=None):
        self.passes, self.step_s, self.fail_at, self.error = passes, step_s, fail_at, error
        self.done, self.visits, self.received = 0, 0, 0
        self.photons = np.zeros(0)
        self.facts = {"batch size": "20"}

    def run(self, batches):
        while self.done < self.passes:
            for frames in batches(self.batch_size):
                time.sleep(self.step_s)
                self.visits += len(frames)
                if self.fail_at is not None and self.visits >= self.fail_at:
                    raise self.error
                if frames.index[-1] >= self.received:
                    self.received = int(frames.index[-1]) + 1
                    self.photons = np.concatenate([self.photons, frames.photons])
                yield self.progress()
            self.done += 1

    def progress(self):
        return Progress(f"pass {self.done + 1} of {self.passes}", self.visits / (self.passes * 200), self.visits, 5.0)

    def snapshot(self, all_poses=False):
        n, grid = self.received, np.indices((9, 9, 9)).sum(0).astype(np.float32)
        angle = 0.01 * np.arange(n) * (self.done + 1)
        quaternion = np.stack([0 * angle, 0 * angle, np.sin(angle / 2), np.cos(angle / 2)], axis=-1)
        columns = [np.ones(n, np.float32), self.photons.astype(np.float32), np.full(n, 0.5, np.float32)]
        return Snapshot(
            intensity=Volume(grid + self.visits, 0.02, "1/angstrom"), weight=Volume(grid, 0.02, "1/angstrom"),
            density=None, poses=Poses(np.arange(n), quaternion.astype(np.float32), *columns),
            status=np.zeros(n, np.uint8),
            history={name: np.arange(3.0) for name in ("frames_seen", "log_likelihood", "resolution_q")},
            shells={"q": np.arange(4.0), "half_cc": np.full(4, np.nan), "weight": np.ones(4)},
            counters=Counters(received=n, used=n), progress=self.progress(), resolution_A=None,
            verdict=self.verdict, reason=self.reason, facts=self.facts,
        )  # fmt: skip

    def trust(self):
        return None

    def pose_columns(self):
        return vars(self.snapshot().poses)

    def state(self):
        return {"photons": self.photons}, {"done": self.done, "visits": self.visits, "received": self.received}

    def restore(self, arrays, rest):
        self.photons = arrays["photons"]
        self.done, self.visits, self.received = rest["done"], rest["visits"], rest["received"]
