"""A snapshot as napari layers: made, found again and renewed, on the ViewerModel alone (no Qt, no GL)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from .core.coverage import ViewDensity
from .core.frames import Snapshot
from .first_look_layout import FrameStack, lay_out

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Layer

    from .io.source import FrameSource

KEY = "napari_xrai"
"""Every layer of ours carries ``metadata[KEY]``: what it shows. Nothing is found by its name."""

Kind = Literal["intensity", "density", "slices", "patterns", "poses", "powder", "mask", "rings", "centre"]
View = Literal["volume", "slices"]
LayerData = tuple[Any, dict[str, Any], str]
Surface = tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32]]

FIRST_LOOK: tuple[Kind, ...] = ("patterns", "powder", "mask", "rings", "centre")
"""What is looked at before there is a result, and makes room for it."""

DEFAULT_LEVEL = 0.3
"""The density's surface, as a fraction of its brightest voxels (99.9th percentile)."""

GAMMA = 0.3
"""Diffraction falls over many decades; a gamma shows them, keeps the data true, and has a slider in napari."""

INTENSITY_WIDTH, INTENSITY_X, DENSITY_X = 0.46, -0.25, 0.22
"""Intensity and density side by side, in units of the density's box (= 1/Δq, at least twice the particle)."""

CAMERA_ANGLES = (0.0, 30.0, 20.0)
"""Oblique, so that depth is seen, with both maps still side by side."""

SECTION_CELLS = 64
LIMITS_RTOL = 0.02
"""Contrast that would change by less is left alone: it is not seen, and costs a redraw."""

MAX_POSES = 5000
PATTERNS_FOR_CONTRAST = 10


@dataclass(frozen=True, eq=False)
class PoseCloud:
    """Poses as points: where the beam went through the particle, at most `MAX_POSES` of them.

    Parameters
    ----------
    direction : (K, 3) float32
        The beam's axis in the particle's frame, unit vectors (x, y, z): ``R ẑ``.
    in_plane : (K,) float32
        Turn of the pattern about the beam, 0…1 of a full turn.
    confidence : (K,) float32
        0…1.
    views : (K,) float32
        How many frames look along each, relative to an even spread.
    total : int
        Poses there are.
    evenness : str
        Whether views are missing, in words.
    """

    direction: NDArray[np.float32]
    in_plane: NDArray[np.float32]
    confidence: NDArray[np.float32]
    views: NDArray[np.float32]
    total: int
    evenness: str


@dataclass(frozen=True, eq=False)
class Curves:
    """The curves shown to the user.

    Parameters
    ----------
    frames_seen, log_likelihood, resolution : (T,) float64
        Resolution is 1/q in Å, or the radius in detector voxels where there is no wavelength.
    q, half_cc : (S,) float64
        Half-set correlation per shell of |q|.
    calibrated : bool
        Whether q is in Å⁻¹ (else: in detector voxels).
    """

    frames_seen: NDArray[np.float64]
    log_likelihood: NDArray[np.float64]
    resolution: NDArray[np.float64]
    q: NDArray[np.float64]
    half_cc: NDArray[np.float64]
    calibrated: bool


@dataclass(frozen=True, eq=False)
class Picture:
    """All that is drawn of a snapshot. Made where arithmetic may take its time: off the GUI thread.

    Parameters
    ----------
    snapshot : Snapshot
    limits : (low, high)
        Contrast limits for the intensity, in its own values.
    slices, surface : (vertices, faces, values) or None
        Triangles in voxels (z, y, x): three orthogonal sections of the intensity, and the density's isosurface
        (its values: distance from the centre). None where nothing was measured or phased.
    level : float
        Where the surface lies, as a fraction of the brightest density.
    """

    snapshot: Snapshot
    limits: tuple[float, float]
    slices: Surface | None
    surface: Surface | None
    level: float
    poses: PoseCloud
    curves: Curves

    @classmethod
    def of(cls, snapshot: Snapshot, level: float = DEFAULT_LEVEL) -> Picture:
        """Draw `snapshot`, with the density's surface at `level` (fraction of its brightest voxels)."""
        intensity, density = snapshot.intensity, snapshot.density
        return cls(
            snapshot=snapshot,
            limits=intensity_limits(intensity.data),
            slices=sections(intensity.data, snapshot.weight.data),
            surface=None if density is None else isosurface(density.data, level),
            level=level,
            poses=_pose_cloud(snapshot),
            curves=_curves(snapshot),
        )


def intensity_limits(volume: NDArray[np.float32]) -> tuple[float, float]:
    """Contrast limits for a diffraction volume: from nothing to all but the brightest 5 ‰ of what was measured."""
    measured = volume[np.isfinite(volume) & (volume > 0)]
    return (0.0, float(np.percentile(measured, 99.5)) if measured.size else 1.0)


def isosurface(density: NDArray[np.float32], level: float = DEFAULT_LEVEL) -> Surface | None:
    """Triangles of the density's isosurface, or None where there is none.

    Parameters
    ----------
    density : (n, n, n) float32
    level : float
        Fraction of the 99.9th percentile of the positive voxels.

    Returns
    -------
    (vertices (V, 3), faces (F, 3), values (V,)) in voxels, (z, y, x); values: distance from the centre.
    """
    from skimage.measure import marching_cubes

    positive = density[density > 0]
    if positive.size == 0:
        return None
    threshold = level * float(np.percentile(positive, 99.9))
    if not density.min() < threshold < density.max():
        return None
    vertices, faces, _, _ = marching_cubes(density, threshold)
    distance = np.linalg.norm(vertices - np.array(density.shape) // 2, axis=1)
    return vertices.astype(np.float32), faces.astype(np.int32), distance.astype(np.float32)


def sections(volume: NDArray[np.float32], weight: NDArray[np.float32]) -> Surface | None:
    """Three orthogonal sections through q = 0, as discs of what was measured there.

    A few thousand flat triangles (at most `SECTION_CELLS` a side) draw a hundred times faster than a volume where
    there is no graphics card.
    """
    centre = volume.shape[0] // 2
    step = -(-2 * centre // SECTION_CELLS)
    reach = centre // step
    line = centre + step * np.arange(-reach, reach + 1 if centre + step * reach < volume.shape[0] else reach)
    n = len(line)
    grid = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    corner = np.arange(n * n).reshape(n, n)
    a, b = corner[:-1, :-1].ravel(), corner[1:, :-1].ravel()
    c, d = corner[:-1, 1:].ravel(), corner[1:, 1:].ravel()
    within = np.linalg.norm(grid - centre, axis=1) <= centre
    vertices, faces, values = [], [], []
    for axis in range(3):
        at = np.insert(grid, axis, centre, axis=1)
        seen = within & (weight[tuple(at.T)] > 0)
        cell = seen[a] & seen[b] & seen[c] & seen[d]
        faces.append(np.concatenate([np.c_[a, b, c][cell], np.c_[b, d, c][cell]]) + axis * n * n)
        vertices.append(at)
        values.append(volume[tuple(at.T)])
    triangles = np.concatenate(faces).astype(np.int32)
    if not len(triangles):
        return None
    return np.concatenate(vertices).astype(np.float32), triangles, np.concatenate(values).astype(np.float32)


def _pose_cloud(snapshot: Snapshot) -> PoseCloud:
    poses = snapshot.poses
    total = len(poses.frame)
    rows = np.linspace(0, total - 1, min(total, MAX_POSES)).astype(int)
    x, y, z, w = np.asarray(poses.quaternion[rows], np.float32).reshape(-1, 4).T
    direction = np.stack([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)], axis=1)
    # twist about the beam: the rotation is a swing of ẑ followed by a turn of 2·atan2(z, w)
    turn = (np.arctan2(z, w) / np.pi) % 1.0
    confidence = np.nan_to_num(poses.confidence[rows]).clip(0, 1)
    coverage = ViewDensity([direction]).coverage()
    views = coverage.along(direction) if len(direction) else np.zeros(0)
    return PoseCloud(
        direction, turn.astype(np.float32), confidence.astype(np.float32), views.astype(np.float32), total,
        coverage.sentence,
    )  # fmt: skip


def _curves(snapshot: Snapshot) -> Curves:
    history, shells = snapshot.history, snapshot.shells
    calibrated = snapshot.intensity.units == "1/angstrom"
    none = np.zeros(0)
    q = history.get("resolution_q", none)
    with np.errstate(divide="ignore", invalid="ignore"):
        resolution = np.where(q > 0, 1 / q if calibrated else q, np.nan)
    return Curves(
        frames_seen=history.get("frames_seen", none),
        log_likelihood=history.get("log_likelihood", none),
        resolution=resolution,
        q=shells.get("q", none),
        half_cc=shells.get("half_cc", none),
        calibrated=calibrated,
    )


# ---- layers


def _placed(n: int, voxel: float, centre_x: float) -> dict[str, Any]:
    """Scale and translation that put a volume's origin (index n//2) at world (0, 0, centre_x)."""
    return {"scale": (voxel,) * 3, "translate": np.array([0.0, 0.0, centre_x]) - voxel * (n // 2)}


def _fog() -> Any:
    """Clear and dark to opaque and bright: a bright core shows through a thin outside."""
    from napari.utils.colormaps import Colormap, ensure_colormap

    ramp = np.linspace(0, 1, 64)
    colors = np.array(ensure_colormap("inferno").map(ramp))
    colors[:, 3] = ramp**2
    return Colormap(colors, name="xrai-fog", display_name="X-RAI fog")


def intensity_layer(picture: Picture) -> LayerData:
    """The measured intensity as a volume, sized to stand beside the density."""
    volume = picture.snapshot.intensity
    box, n = 1.0 / volume.voxel_size, volume.data.shape[0]
    kwargs = {
        "name": "Intensity", "colormap": _fog(), "rendering": "translucent", "blending": "translucent_no_depth",
        "contrast_limits": picture.limits, "gamma": GAMMA, "metadata": {KEY: "intensity", "volume": volume},
        **_placed(n, INTENSITY_WIDTH * box / n, INTENSITY_X * box),
    }  # fmt: skip
    return (volume.data, kwargs, "image")


def slices_layer(picture: Picture) -> LayerData | None:
    """Three orthogonal sections of the intensity, where the volume stands."""
    if picture.slices is None:
        return None
    volume = picture.snapshot.intensity
    box, n = 1.0 / volume.voxel_size, volume.data.shape[0]
    kwargs = {
        "name": "Intensity, three sections", "colormap": "inferno", "shading": "none",
        "contrast_limits": picture.limits, "gamma": GAMMA, "metadata": {KEY: "slices", "volume": volume},
        **_placed(n, INTENSITY_WIDTH * box / n, INTENSITY_X * box),
    }  # fmt: skip
    return (picture.slices, kwargs, "surface")


def density_layer(picture: Picture) -> LayerData | None:
    """The density's surface, in its own unit of length; coloured by the distance from the particle's centre.

    The name says what the value is: napari's status bar shows name and value, and nothing else of a surface.
    """
    volume = picture.snapshot.density
    if volume is None or picture.surface is None:
        return None
    n, voxel = volume.data.shape[0], volume.voxel_size
    vertices, faces, voxels = picture.surface
    distance = voxels * np.float32(voxel)
    low, high = (float(v) for v in np.percentile(distance, (1, 99)))
    unit = "Å" if volume.units == "angstrom" else "1/voxel"
    kwargs = {
        "name": f"Density ({unit} from centre)", "colormap": "viridis", "shading": "smooth",
        "contrast_limits": (low, max(high, low + 1e-3 * voxel)),
        "metadata": {KEY: "density", "volume": volume, "level": picture.level},
        **_placed(n, voxel, DENSITY_X * voxel * n),
    }  # fmt: skip
    return ((vertices, faces, distance), kwargs, "surface")


def picture_layers(picture: Picture, view: View = "volume") -> list[LayerData]:
    """All layers of a result; of the two views of the intensity, `view` is visible."""
    layers = [intensity_layer(picture), slices_layer(picture), density_layer(picture)]
    there = [layer for layer in layers if layer is not None]
    for _, kwargs, _ in there:
        kwargs["visible"] = kwargs["metadata"][KEY] in (_shown(view), "density")
    return there


def _shown(view: View) -> Kind:
    return "intensity" if view == "volume" else "slices"


class ResultLayers:
    """The layers of one viewer that show a reconstruction.

    Layers are found by their metadata; one that the user deleted comes back with the next picture. Contrast
    follows the data until the user touches it, and the camera is left alone once the user has turned it.
    """

    def __init__(self, viewer: ViewerModel, view: View = "volume") -> None:
        self.viewer = viewer
        self.view: View = view
        self._limits: dict[str, tuple[float, float]] = {}
        self._camera: tuple[float, ...] | None = None

    def begin(self) -> None:
        """A new run starts: forget what the user touched."""
        self._limits.clear()
        self._camera = None

    def show(self, picture: Picture) -> None:
        """Bring the viewer's layers up to `picture`."""
        for step in self.steps(picture):
            step()

    def steps(self, picture: Picture) -> Iterator[Callable[[], None]]:
        """What `show` does, in pieces short enough for a window to answer between them: making a layer is slow."""
        had_density = self.find("density") is not None
        yield self._put_patterns_away
        for data in picture_layers(picture, self.view):
            yield partial(self._renew, data)
        if picture.snapshot.density is None:
            yield self._put_density_away
        if self._camera is None or (self._camera == self._camera_now() and not had_density):
            yield partial(self._look, picture)

    def set_view(self, view: View) -> None:
        """Show the intensity as a volume, or as three orthogonal sections."""
        self.view = view
        for kind in ("intensity", "slices"):
            for layer in self._all(kind):
                layer.visible = kind == _shown(view)

    def find(self, kind: str) -> Layer | None:
        """The first layer of this kind that the viewer has now."""
        return next(iter(self._all(kind)), None)

    def _all(self, kind: str) -> list[Layer]:
        return [layer for layer in self.viewer.layers if layer.metadata.get(KEY) == kind]

    def _put_patterns_away(self) -> None:
        """Once, when a run's first volume comes; the user may bring them back."""
        if self._camera is None:
            for layer in self.viewer.layers:
                if layer.metadata.get(KEY) in FIRST_LOOK:
                    layer.visible = False
            self.viewer.dims.ndisplay = 3

    def _put_density_away(self) -> None:
        """Phasing failed, or a new run began: the density shown is not this intensity's."""
        for layer in self._all("density"):
            self.viewer.layers.remove(layer)

    def _renew(self, new: LayerData) -> None:
        from napari.layers import Layer

        data, kwargs, layer_type = new
        kind = kwargs["metadata"][KEY]
        layer = self.find(kind)
        if layer is None:
            layer = self.viewer.add_layer(Layer.create(data, kwargs, layer_type))
            self._limits[kind] = tuple(layer.contrast_limits)
            return
        layer.data = data
        for name in ("scale", "translate"):
            if not np.allclose(getattr(layer, name), kwargs[name]):
                setattr(layer, name, kwargs[name])
        if layer.metadata["volume"].units != kwargs["metadata"]["volume"].units:
            layer.name = kwargs["name"]  # which may be the user's, but not say another unit than the value's
        layer.metadata.update(kwargs["metadata"])
        untouched = self._limits.get(kind, tuple(layer.contrast_limits)) == tuple(layer.contrast_limits)
        if untouched and not np.allclose(layer.contrast_limits, kwargs["contrast_limits"], rtol=LIMITS_RTOL):
            layer.contrast_limits_range = kwargs["contrast_limits"]
            layer.contrast_limits = kwargs["contrast_limits"]
            self._limits[kind] = tuple(layer.contrast_limits)

    def _look(self, picture: Picture) -> None:
        """Look obliquely, and fit the places of the maps, not their shapes: those change all the time."""
        camera, box = self.viewer.scene.camera, 1.0 / picture.snapshot.intensity.voxel_size
        both = picture.surface is not None
        left, right = INTENSITY_X - INTENSITY_WIDTH / 2, (DENSITY_X if both else INTENSITY_X) + INTENSITY_WIDTH / 2
        camera.angles = CAMERA_ANGLES
        camera.center = (0.0, 0.0, box * (left + right) / 2)
        height, width = self.viewer.canvas.size
        camera.zoom = min(width / (box * (right - left)), height / (box * INTENSITY_WIDTH)) * 0.95
        self._camera = self._camera_now()

    def _camera_now(self) -> tuple[float, ...]:
        camera = self.viewer.scene.camera
        return (*camera.center, camera.zoom, *camera.angles)


# ---- patterns


def patterns_layer(source: FrameSource) -> LayerData | None:
    """All patterns of `source` as an image stack (N, rows, columns), each read when it is shown.

    Laid out as the detector lies, where its geometry is known; None for a list of pixels without one.
    """
    layout = lay_out(source.shape, source.detector)
    if layout is None or not source.n_frames:
        return None
    first = source.read(np.arange(min(PATTERNS_FOR_CONTRAST, source.n_frames)))
    lit = first.count if len(first.count) else np.ones(1)
    kwargs = {
        "name": f"Patterns: {source.paths[0].name if source.paths else source.format} ({source.n_frames:,})",
        "colormap": "inferno",
        "gamma": 0.6,
        "contrast_limits": (0.0, max(1.0, float(np.percentile(lit, 99.5)))),
        "metadata": {KEY: "patterns", "paths": [str(path) for path in source.paths]},
    }
    return (FrameStack(source, layout), kwargs, "image")
