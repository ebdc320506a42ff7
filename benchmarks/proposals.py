"""The encoder's place: accuracy and cost of the encoder, the search, and both, by pixels, photons and stream length.

    python benchmarks/proposals.py --data DIR [--pixels 64 128] [--photons 75 500 5000]

DIR as for benchmarks/convergence.py. Frames of 4BED, by our simulator; the engine infers poses from candidates of one
proposer or of both, and from nothing else, under the true intensity at full resolution. So this asks what a proposer
is worth to the finished field: the search must be made ready for every update of the field, the encoder must sleep,
and either then costs something per frame. The *break-even* is the number of frames per update of the field (and, with
the first sleep, in all) from which the encoder is the cheaper.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from convergence import Case
from napari_xrai.core import kernels
from napari_xrai.core.amortised import AmortisedPoses
from napari_xrai.core.frame_table import FrameTable
from napari_xrai.core.inference import Inferred, Proposer, infer_poses
from napari_xrai.core.likelihood import PoseLikelihood
from napari_xrai.core.rotations import align_poses
from throughput import Workload, clocked


@dataclass
class Proposals:
    """One proposer at one brightness and size of frame."""

    median_deg: float
    wrong: float
    likelihood: float
    propose: float
    infer: float


def assess(workload: Workload, likelihood: PoseLikelihood, proposers: list[Proposer]) -> Proposals:
    """Accuracy of the poses inferred, and CPU s per frame: to propose, and to infer in all."""
    batches = workload.batches
    rng = np.random.default_rng(0)

    def infer() -> list[Inferred]:
        return [infer_poses(b, likelihood, proposers, FrameTable(), 1.0, rng) for b in batches]

    found = infer()
    rotation = np.concatenate([f.rotation for f in found])
    index = np.concatenate([b.index for b in batches])
    _, error = align_poses(rotation, workload.truth.rotation[index], workload.truth.point_group)
    total = np.concatenate([b.totals(likelihood.n_pixels) for b in batches])
    gain = likelihood.gain(np.concatenate([f.log_likelihood for f in found]), total)
    named = clocked(lambda: [propose(b) for b in batches for propose in proposers], workload.frames)[0]
    return Proposals(
        float(np.median(error)), float((error > 20).mean()), float(gain.mean()), named,
        clocked(infer, workload.frames)[0],
    )  # fmt: skip


def taught(workload: Workload) -> tuple[Proposer, float, float]:
    """An encoder that has slept twice, and the CPU seconds of its first sleep and of the next."""
    engine = workload.engine
    assert engine.field is not None
    amortised = AmortisedPoses(engine.pixels, engine.brightness, engine.speckle.size, engine.fluence_shape)
    spent = []
    for _ in range(2):
        begin = time.process_time()
        for _ in amortised.sleep(engine.field.ratio, engine.radius, engine.rng):
            pass
        spent.append(time.process_time() - begin)
    return amortised.propose, spent[0], spent[1]


def compare(pixels: int, photons: float, data: Path) -> tuple[dict[str, Proposals], dict[str, float]]:
    """The three ways on one kind of frame; and CPU s of making ready, and break-evens in frames."""
    frames = 600 if photons < 2000 else 400
    workload = Workload("4bed", Case("4bed_asu.pdb.gz", frames, photons, pixels), data, 1)
    begin = time.process_time()
    workload._search()
    ready = time.process_time() - begin
    likelihood, (search,) = workload._prepared("search").result
    encoder, first, following = taught(workload)
    ways = {"search": [search], "encoder": [encoder], "both": [search, encoder]}
    found = {name: assess(workload, likelihood, proposers) for name, proposers in ways.items()}
    saved = found["search"].infer - found["encoder"].infer
    extra = {"ready": ready, "first": first, "following": following}
    extra["per update"] = (following - ready) / saved if saved > 0 else np.inf
    extra["once"] = (first - ready) / saved if saved > 0 else np.inf
    return found, extra


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pixels", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--photons", type=float, nargs="+", default=[75, 500, 5000])
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for _ in kernels.compile_kernels():
        pass
    table = Table("pixels", "photons", "candidates from", "median °", "> 20°", "ln L gained", "propose µs", "infer µs",
                  "ready, CPU s", "break-even, frames per update", "in all")  # fmt: skip
    for pixels in chosen.pixels:
        for photons in chosen.photons:
            found, extra = compare(pixels, photons, chosen.data)
            for name, p in found.items():
                ready = {
                    "search": f"{extra['ready']:.2f}",
                    "encoder": f"{extra['first']:.1f}, {extra['following']:.1f}",
                }
                even = [f"{extra[k]:,.0f}" for k in ("per update", "once")] if name == "encoder" else ["", ""]
                row = [f"{pixels}²", f"{photons:.0f}", name, f"{p.median_deg:.2f}", f"{p.wrong:.1%}",
                       f"{p.likelihood:.2f}", f"{1e6 * p.propose:.0f}", f"{1e6 * p.infer:.0f}",
                       ready.get(name, ""), *even]  # fmt: skip
                table.add_row(*row)
                print(" | ".join(row), flush=True)
    Console(width=180).print(table)


if __name__ == "__main__":
    main()
