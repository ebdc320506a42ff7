"""An engine for the panel's tests: no physics, but everything a window can be shown, at a pace of our choice."""

import time

import numpy as np

from napari_xrai.core.frames import Counters, Poses, Progress, Snapshot, Volume

N = 21


class GuiEngine:
    """Grows a bright blob, wider with every step; `steps` steps of `step_s`, and `error` at step `fail_at`."""

    batch_size = 10

    def __init__(self, steps=40, step_s=0.02):
        self.steps, self.step_s, self.done = steps, step_s, 0
        self.fail_at, self.error, self.closed = None, None, False
        self.facts = {"diameter": "120 Å"}

    def run(self, batches):
        next(iter(batches(self.batch_size)))
        try:
            while self.done < self.steps:
                time.sleep(self.step_s)
                self.done += 1
                if self.done == self.fail_at:
                    raise self.error
                yield self.progress()
        finally:
            self.closed = True

    def progress(self):
        return Progress(f"pass {self.done} of {self.steps}", self.done / self.steps, 50 * self.done, 8.0)

    def snapshot(self, all_poses=True):
        distance = np.linalg.norm(np.indices((N, N, N)) - N // 2, axis=0)
        blob = (1 + self.done) * np.exp(-((distance / (3 + 0.1 * self.done)) ** 2))
        intensity = Volume(blob.astype(np.float32), 1 / 80, "1/angstrom")
        quaternion = np.random.default_rng(self.done).normal(size=(50, 4)).astype(np.float32)
        quaternion /= np.linalg.norm(quaternion, axis=1, keepdims=True)
        rows = np.ones(50, np.float32)
        seen = 50.0 * np.arange(1, self.done + 2)
        return Snapshot(
            intensity=intensity, weight=Volume(np.ones_like(intensity.data), 1 / 80, "1/angstrom"), density=None,
            poses=Poses(np.arange(50), quaternion, rows, rows, np.linspace(0, 1, 50, dtype=np.float32)),
            status=np.zeros(50, np.uint8),
            history={"frames_seen": seen, "log_likelihood": np.log(seen), "resolution_q": seen / seen[-1] / 20},
            shells={"q": np.linspace(0.01, 0.1, 9), "half_cc": np.linspace(1, 0, 9), "weight": np.ones(9)},
            counters=Counters(received=50, used=50), progress=self.progress(), resolution_A=20.0,
            verdict="converged" if self.done >= self.steps else "improving", reason="the halves agree",
            facts=self.facts,
        )  # fmt: skip

    def trust(self):
        return None

    def pose_columns(self):
        return vars(self.snapshot().poses)

    def state(self):
        return {"seen": np.arange(float(self.done))}, {"done": self.done}

    def restore(self, arrays, rest):
        self.done = rest["done"]
