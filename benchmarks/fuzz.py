"""Damaged files, thousands per format: each must give a result or one sentence, and nothing worse.

Valid files are damaged at random: bytes and whole numbers replaced, pieces cut out, doubled or zeroed, ends cut off. A
child process opens them as the command line would. Counted are: a crash of that process; no answer within 5 s; more
than 1 GiB of memory asked for, used or not; any exception but `InputError`; a message of several lines; and any file
that appears.

    python benchmarks/fuzz.py [--files 10000] [--formats cxi,emc] [--seed 0] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

PATIENCE_S = 5.0
MOST_MEMORY = 2**30
ROOM = 2**33
"""More than this the child does not get; what lies between is seen."""

SHAPE = (12, 8)
DETECTOR = "entry_1/instrument_1/detector_1"


# ---- valid files


def photons(shape=(7, *SHAPE), mean=0.5) -> np.ndarray:
    return np.random.default_rng(1).poisson(mean, shape).astype(np.uint8)


def cxi(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["cxi_version"] = 160
        group = file.create_group(DETECTOR)
        group.create_dataset("data", data=photons(), chunks=(2, *SHAPE), compression="gzip", shuffle=True)
        group["mask"] = np.zeros(SHAPE, np.uint32)
        group["distance"], group["x_pixel_size"], group["y_pixel_size"] = 0.5, 1e-3, 1e-3
        group["corner_position"], group["basis_vectors"] = [4e-3, 6e-3, 0], [[0, -1e-3, 0], [-1e-3, 0, 0]]
        file["entry_1/instrument_1/source_1/energy"] = np.full(7, 9.6e-16)
        file["entry_1/data_1/data"] = h5py.SoftLink(f"/{DETECTOR}/data")
        file["entry_1/data_1/trainId"] = np.arange(7)


def cxi_large(path: Path) -> None:
    """Read from its chunks as they lie in the file."""
    with h5py.File(path, "w") as file:
        data = photons((4, 2, 256, 128), 0.01).astype("<u2")
        options = {"chunks": (1, 2, 128, 128), "compression": "gzip", "shuffle": True}
        file.create_dataset(f"{DETECTOR}/data", data=data, **options)
        file[f"{DETECTOR}/mask"] = np.zeros((4, 2, 256, 128), np.uint8)
        file["entry_1/data_1"] = h5py.SoftLink(f"/{DETECTOR}")
        file["entry_1/trainId"], file["cxi_version"] = np.arange(4), [150]


def emc(path: Path) -> None:
    counts = photons((7, 96)).astype("<i4")
    ones, multi = [np.flatnonzero(c == 1) for c in counts], [np.flatnonzero(c > 1) for c in counts]
    header = np.zeros(256, "<i4")
    header[:2] = 7, 96
    many = [c[m] for c, m in zip(counts, multi, strict=True)]
    parts = [header, [len(o) for o in ones], [len(m) for m in multi], *ones, *multi, *many]
    path.write_bytes(b"".join(np.asarray(part, "<i4").tobytes() for part in parts))


def emc_dense(path: Path) -> None:
    header = np.zeros(256, "<i4")
    header[:3] = 7, 96, 2
    path.write_bytes(header.tobytes() + photons((7, 96)).astype("<f8").tobytes())


def emc_hdf5(path: Path) -> None:
    counts = photons((7, 96)).astype(np.int32)
    with h5py.File(path, "w") as file:
        file["num_pix"] = np.array([96])
        for name in ("place_ones", "place_multi", "count_multi"):
            data = file.create_dataset(name, (7,), h5py.vlen_dtype(np.int32), chunks=(1,))
            for n, frame in enumerate(counts):
                lit = np.flatnonzero(frame == 1 if name == "place_ones" else frame > 1)
                data[n] = frame[lit] if name == "count_multi" else lit


def _columns() -> np.ndarray:
    y, x = (a.ravel() for a in np.mgrid[-5.5:6, -3.5:4])
    r = np.sqrt(x**2 + y**2 + 500**2)
    return np.stack([x * 500 / r, y * 500 / r, 500 * (500 / r - 1), 500 / r**3, 0 * x], axis=1)


def detector_hdf5(path: Path) -> None:
    columns = _columns()
    with h5py.File(path, "w") as file:
        for name, column in zip(("qx", "qy", "qz", "corr"), columns.T, strict=False):
            file[name] = column
        file["mask"], file["detd"], file["ewald_rad"] = np.zeros(96, np.uint8), 500.0, 500.0


def detector_text(path: Path) -> None:
    np.savetxt(path, _columns(), header="96 500 500", comments="", fmt="%.8g")


def geom(path: Path) -> None:
    path.write_text(
        "photon_energy = 6000 eV\nclen = 0.7 m\nres = 5000\ndim0 = %\ndim1 = ss\ndim2 = fs\nmask = /mask\n"
        "mask_bad = 0xffff\nbadspot/min_fs = 0\nbadspot/max_fs = 1\nbadspot/min_ss = 0\nbadspot/max_ss = 2\n"
        "badspot/panel = a\nrigid_group_q = a,b\n"
        + "".join(
            f"{name}/min_ss = {6 * n}\n{name}/max_ss = {6 * n + 5}\n{name}/min_fs = 0\n{name}/max_fs = 7\n"
            f"{name}/corner_x = {4 - n}\n{name}/corner_y = {-6 * n}\n{name}/fs = -1.0x +0.001y\n"
            f"{name}/ss = -0.001x -1.0y +0.01z\n{name}/coffset = 0.001\n"
            for n, name in enumerate("ab")
        )
    )


def npy(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, photons().astype(np.int16))


def npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, photons=photons())


def plain_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("scan/frames", data=photons(), chunks=(1, *SHAPE), compression="gzip")
        file["scan/names"] = [b"a", b"b"]


def skopi(path: Path) -> None:
    y, x = np.mgrid[-5.5:6, -3.5:4] * 1e-3
    r = np.sqrt(x**2 + y**2 + 0.25)
    s = np.stack([x / r, y / r, 0.5 / r - 1], axis=-1)[None] / 2e-10
    with h5py.File(path, "w") as file:
        file["intensities"] = photons((7, 1, *SHAPE)).astype(np.float32)
        file["pixel_position_reciprocal"], file["pixel_index_map"] = s, np.zeros((1, *SHAPE, 2), int)
        file["orientations"] = np.tile([1.0, 0, 0, 0], (7, 1, 1))
        file["polarization"] = file["solid_angle"] = np.ones((1, *SHAPE))


def nexus(path: Path) -> None:
    with h5py.File(path, "w") as file:
        entry = file.create_group("entry")
        entry.attrs["NX_class"] = "NXentry"
        entry["definition"] = "NXmx"
        for name, kind in (("data", "NXdata"), ("instrument", "NXinstrument"), ("instrument/detector", "NXdetector"),
                           ("instrument/beam", "NXbeam")):  # fmt: skip
            entry.create_group(name).attrs["NX_class"] = kind
        entry["data/data"] = photons().astype(np.int32)
        beam, detector = entry["instrument/beam"], entry["instrument/detector"]
        beam["incident_wavelength"] = 2.0
        beam["incident_wavelength"].attrs["units"] = "angstrom"
        for name, value in (("distance", 500.0), ("x_pixel_size", 1.0), ("y_pixel_size", 1.0)):
            detector[name] = value
            detector[name].attrs["units"] = "mm"
        detector["beam_center_x"], detector["beam_center_y"] = 4.0, 6.0
        detector["pixel_mask"] = np.zeros(SHAPE, np.int32)


def mask_npy(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(SHAPE, np.uint8))


def mask_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["mask"] = np.zeros(SHAPE, np.uint8)


def mask_png(path: Path) -> None:
    import imageio.v3

    path.write_bytes(imageio.v3.imwrite("<bytes>", np.eye(*SHAPE, dtype=np.uint8) * 255, extension=".png"))


def mask_tiff(path: Path) -> None:
    import tifffile

    tifffile.imwrite(path, np.eye(*SHAPE, dtype=np.uint8), compression="zlib")


def selection(path: Path) -> None:
    path.write_text("0 2 4\n5\n")


def mrc(path: Path) -> None:
    from napari_xrai.core.frames import Volume
    from napari_xrai.io.mrc import write_mrc

    write_mrc(Volume(np.ones((5, 6, 7), np.float32), 3.0, "angstrom"), path, "X-RAI density")


MAKERS = (
    cxi, cxi_large, emc, emc_dense, emc_hdf5, detector_hdf5, detector_text, geom, npy, npz, plain_hdf5, skopi, nexus,
    mask_npy, mask_hdf5, mask_png, mask_tiff, selection, mrc,
)  # fmt: skip
VALID: dict[str, Callable[[Path], None]] = {maker.__name__: maker for maker in MAKERS}


# ---- damage


EXTREMES = (0, 1, -1, 2**7, 2**8 - 1, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1)


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """One to eight changes; small ones more often than large ones."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 9))):
        if not data:
            break
        at, kind = int(rng.integers(len(data))), int(rng.integers(10))
        length = int(rng.integers(1, 1 + min(64, len(data) - at)))
        if kind < 4:
            data[at] = int(rng.integers(256))
        elif kind == 4:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind < 7:
            width = int(rng.choice([1, 2, 4, 8]))
            number = EXTREMES[rng.integers(len(EXTREMES))] & (1 << 8 * width) - 1
            at -= at % width
            data[at : at + width] = number.to_bytes(width, "little")
        elif kind == 7:
            data[at : at + length] = bytes(length)
        elif kind == 8:
            data[at : at + length] = data[at : at + length] * int(rng.integers(0, 3))
        elif rng.random() < 0.3:
            del data[at:]
    return bytes(data)


# ---- the child


def _stumble() -> None:
    raise KeyError("on purpose")


def _ask_for_much() -> None:
    np.empty(3 * 2**29, np.uint8)  # never touched


MISHAPS: dict[str, Callable[[], None]] = {
    "stumble": _stumble, "die": os.abort, "sleep": lambda: time.sleep(60), "gorge": _ask_for_much,
}  # fmt: skip
"""What the watch must see: each is asked for by name."""


def look_at(kind: str, path: Path, good: Path) -> None:
    """Open a file as the command line would."""
    from napari_xrai.io.mask import read_mask
    from napari_xrai.io.mrc import read_mrc
    from napari_xrai.io.open import classify, describe, open_source
    from napari_xrai.io.select import read_selection

    if kind in MISHAPS:
        MISHAPS[kind]()
    if kind == "selection":
        read_selection(str(path), 7)
        return
    if kind == "mrc":
        read_mrc(path)
        return
    classify(path)
    if kind.startswith("mask"):
        read_mask(path, SHAPE)
        source = open_source([good], mask=path)
    elif kind.startswith(("detector", "geom")):
        source = open_source([good], detector=path)
    else:
        source = open_source([path])
    describe(source)
    total = source.n_frames
    for n, batch in enumerate(source.batches(3)):
        batch.photons.sum()
        if n == 3:
            break
    source.read(np.array([total - 1, 0]))
    source.identity(np.array([total - 1]))


def most_memory() -> int:
    """Bytes that this process ever asked for at once."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmPeak:")[1].split()[0]) * 1024


def child(good: Path) -> None:
    """Answer, for each line ``kind path`` on stdin, with ``ok``, ``refused``, ``wrong …`` or ``memory …``."""
    import resource

    import napari_xrai.io.open  # noqa: F401

    for kind, make in VALID.items():  # what a first use imports is no allocation of the file's
        make(good.parent / "first")
        look_at(kind, good.parent / "first", good)
        (good.parent / "first").unlink()
    used = most_memory()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
    from napari_xrai.io.source import InputError

    print("ready", flush=True)
    for line in sys.stdin:
        kind, path = line.rstrip("\n").split(" ", 1)
        try:
            look_at(kind, Path(path), good)
            answer = "ok"
        except InputError as error:
            answer = "refused" if "\n" not in str(error) else f"wrong message of several lines: {error}"
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            ours = [f for f in traceback.extract_tb(error.__traceback__) if "napari_xrai" in f.filename]
            place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else where.name
            answer = f"wrong {type(error).__name__} at {place}: {error}"
        if most_memory() > used + MOST_MEMORY:
            answer = f"memory: {(most_memory() - used) / 2**30:.1f} GiB; {answer}"
        print(answer.replace("\n", " "), flush=True)


class Child:
    """The process that opens the files; started anew when one has brought it down."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._good = folder / "good"
        self._good.mkdir(parents=True, exist_ok=True)
        cxi(self._good / "frames.cxi")
        with h5py.File(self._good / "frames.cxi", "a") as file:
            del file[DETECTOR]["corner_position"], file[DETECTOR]["x_pixel_size"]
        self._start()

    def _start(self) -> None:
        home = self._folder / "home"
        home.mkdir(exist_ok=True)
        places = {name: str(home) for name in ("HOME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--child", str(self._good / "frames.cxi")], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=home,
            env={**os.environ, **places, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
        if self._answer(60) != "ready":
            raise RuntimeError("the child did not start")

    def _answer(self, patience_s: float) -> str:
        stdout = self._process.stdout
        assert stdout is not None
        if not select.select([stdout], [], [], patience_s)[0]:
            self._process.kill()
            self._process.wait()
            return "hang"
        line = stdout.readline().decode("utf-8", "replace").rstrip("\n")
        return line or f"crash {self._process.wait()}"

    def ask(self, kind: str, path: Path) -> str:
        """``ok``, ``refused``, ``wrong …``, ``memory …``, ``hang`` or ``crash …``."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{kind} {path}\n".encode())
        self._process.stdin.flush()
        answer = self._answer(PATIENCE_S)
        if answer.startswith(("hang", "crash", "memory")):
            self.close()
            self._start()
        return answer

    def strays(self) -> list[str]:
        """Files that appeared."""
        expected = {self._good / "frames.cxi"}
        return [str(p) for p in self._folder.rglob("*") if p.is_file() and p not in expected and p.suffix != ".fuzz"]

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(OSError):
            self._process.kill()
        self._process.wait()


def fuzz(kind: str, n_files: int, seed: int, child: Child, folder: Path, keep: Path | None) -> Counter[str]:
    """Damage a format's valid file `n_files` times; counts answers."""
    path = folder / f"{kind}.fuzz"
    VALID[kind](path)
    content = path.read_bytes()
    answers: Counter[str] = Counter()
    for n in range(n_files):
        path.write_bytes(damaged(content, np.random.default_rng([seed, n])))
        answer = child.ask(kind, path)
        if answer not in ("ok", "refused"):
            short = answer.split(": ")[0]
            if answers[short] == 0:
                print(f"  {kind} {n}: {answer[:300]}", flush=True)
                if keep is not None:
                    shutil.copyfile(path, keep / f"{kind}-{seed}-{n}")
            answer = short
        answers[answer] += 1
    path.unlink()
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--formats", default=",".join(VALID))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=None)
    parser.add_argument("--child", type=Path, default=None)
    options = parser.parse_args()
    if options.child is not None:
        child(options.child)
        return
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        worker = Child(Path(folder))
        for kind in options.formats.split(","):
            began = time.perf_counter()
            answers = fuzz(kind, options.files, options.seed, worker, Path(folder), options.keep)
            pace = options.files / (time.perf_counter() - began)
            print(f"{kind:<14} {dict(answers.most_common())} {pace:.0f} files/s", flush=True)
        print("files that appeared:", worker.strays() or "none")
        worker.close()


if __name__ == "__main__":
    main()
