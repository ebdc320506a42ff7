"""The report: one page that needs nothing else, says what is so, and draws what can be drawn."""

import base64
import io
import re
import shutil
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from napari_xrai.cli import main
from napari_xrai.core.coverage import ViewDensity
from napari_xrai.core.forecast import Forecast
from napari_xrai.core.frames import Phasing, Poses, Volume
from napari_xrai.core.rotations import matrix_to_quaternion, random_rotations
from napari_xrai.core.trust import Trust
from napari_xrai.report import write_report
from napari_xrai.report_curves import Axis, Level, Series, plot, ticks
from napari_xrai.report_pictures import density_views, intensity_sections, pose_map, scale_bar
from napari_xrai.run import RunFolder
from napari_xrai.settings import EngineSettings, InputSettings, Settings
from phased import DQ, N, particle, radius, snapshot_of, write_run

Q = np.arange(15) * DQ
PHASING = Phasing("agreed", "5 of 6 starts agree", 6, 5, 0, {"q": Q, "prtf": 1 - Q * 10, "agreement": 1 - Q * 12})


class Page(HTMLParser):
    """What a browser would find: text, tags and their attributes; every tag closed that must be."""

    VOID = {"meta", "line", "circle", "rect", "path", "image", "br", "link", "img"}  # noqa: RUF012

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.words, self.style = [], [], [], ""
        self.feed(html)
        assert self.open == []
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.words.append(data)

    def svgs(self, kind):
        return sum(tag == "svg" and a.get("class") == kind for tag, a in self.tags)


def report(tmp_path, snapshot, **given):
    return Page(write_report(write_run(tmp_path / "run", snapshot, **given)).read_text(encoding="utf-8"))


def pixels(svg):
    """The picture inside an SVG element, as (rows, columns, channels)."""
    data = re.search(r"data:image/png;base64,([^\"]+)", svg).group(1)
    return np.array(Image.open(io.BytesIO(base64.b64decode(data)))).astype(float)


def drawn(svg, number):
    """(K, 2) picture coordinates of the points of line `number`."""
    path = re.search(rf'<path class="line s{number}" d="([^"]*)"', svg).group(1)
    return np.array([point.split() for point in re.findall(r"[ML]([\d.]+ [\d.]+)", path)], float)


# ---- the page


def test_the_page_fetches_nothing_and_runs_nothing(tmp_path):
    page = report(tmp_path, snapshot_of(density=particle(), phasing=PHASING))
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "img"}
        assert not any(name.startswith("on") for name in attributes)
        for name in {"src", "href", "xlink:href"} & attributes.keys():
            assert attributes[name].startswith("data:image/png;base64,")
    assert "url(" not in page.style
    assert "@import" not in page.style
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy


def test_one_look_tells_verdict_resolution_frames_diameter_and_density(tmp_path):
    page = report(tmp_path, snapshot_of(density=particle(), phasing=PHASING))
    head = page.text[: page.text.index("Curves")]
    for words in (
        "frames.cxi", "Converged", "two starts agree to 0.93", "31.2 Å", "600", "of 1,000 received, 400 left out",
        "118 Å", "agreed", "5 of 6 phasing starts agree", "1 h 02 min",
    ):  # fmt: skip
        assert words in head, words


def test_what_the_figures_do_not_prove_is_beside_them(tmp_path):
    text = report(tmp_path, snapshot_of(density=particle(), phasing=PHASING)).text
    assert "The two halves share their poses" in text
    assert "No mask was used" in text
    assert "1/7" in text
    assert "the PRTF is no resolution" in text
    assert "Its hand is a matter of chance" in text


def test_the_logbook_needs_it_all(tmp_path):
    settings = Settings(
        input=InputSettings(sources=[Path("/data/frames.cxi")], detector=Path("/data/det.h5"), energy_eV=6000),
        engine=EngineSettings(seed=7),
    )
    page = report(tmp_path, snapshot_of(density=particle(), phasing=PHASING), settings=settings)
    for words in (
        "/data/frames.cxi", "/data/det.h5", "6000", "CXI 1.6, 512 photons each", "seed 7", "max frames all",
        "received 1,000", "hits 700", "not hit 300", "junk 100", "run made by napari-xrai", "torch", "--config",
        "settings.json --out again",
    ):  # fmt: skip
        assert words in page.text, words
    assert page.svgs("plot") == 6
    assert page.svgs("globes") == 1
    assert page.svgs("picture") == 2 + 3 + 6


def test_names_of_files_are_text_not_markup(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.start(Settings())
    folder.write_result(snapshot_of(reason='<img src="http://x">'), "/data/<script>alert(1)</script>.cxi", poses=True)
    page = Page(write_report(folder.path).read_text())
    assert "<script>alert(1)</script>.cxi" in page.text
    assert not {"script", "img"} & {tag for tag, _ in page.tags}


def failed_phasing(**curves):
    return Phasing("failed", "no two of 6 starts agree: the density is not determined", 6, 1, 0, curves)


NAN = {"resolution_q": np.full(3, np.nan)}
NO_POSES = Poses(*(np.zeros((0, *shape), np.float32) for shape in ((), (4,), (), (), ())))
STATES = {  # what is wrong: changes to the run, words that must be there, curves that are still drawn
    "empty": ({"data": np.zeros((N, N, N))}, ["the intensity is empty", "No density yet"], 4),
    "constant": ({"data": np.full((N, N, N), 7.0)}, ["the same in every measured voxel: it shows no particle"], 5),
    "not finite": ({"data": np.full((N, N, N), np.nan)}, ["the intensity is empty"], 4),
    "unmeasured": ({"weight": np.zeros((N, N, N))}, ["the intensity is empty"], 4),
    "few frames": (
        {"shells": {"q": Q, "half_cc": np.full(15, np.nan)}, "history": {**snapshot_of().history, **NAN},
         "resolution_A": None},
        ["none yet", "the half-sets hold too few frames", "no half-sets have agreed yet"], 3,
    ),
    "no curves at all": ({"shells": {}, "history": {}}, ["the half-sets hold too few frames", "no frame has been"], 2),
    "all starts failed": (
        {"phasing": failed_phasing(q=Q, prtf=1 - Q, agreement=np.full(15, np.nan))},
        ["No density is shown, because phasing failed: no two of 6 starts agree"], 6,
    ),
    "nothing to phase": ({"phasing": failed_phasing()}, ["No curve: no two of 6 starts agree"], 5),
    "live density": ({"density": particle()}, ["live density of one start", "napari-xrai phase"], 5),
    "doubtful": (
        {"density": particle(), "phasing": replace(PHASING, verdict="doubtful")}, ["Doubtful: 5 of 6 starts agree"], 6
    ),
    "failed": (
        {"density": particle(), "phasing": PHASING, "verdict": "failed", "reason": "no two starts agree"},
        ["Failed: not converging", "Not to be believed: the intensity it was phased from has not converged"], 6,
    ),
    "stopped early": (
        {"progress": replace(snapshot_of().progress, phase="pass 2 of 8", fraction=0.4), "poses": NO_POSES},
        ["Not run to its end (stopped, or still running) at 40%, pass 2 of 8", "No poses yet"], 4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("state", STATES)
def test_every_state_of_a_run_is_said_and_drawn_as_far_as_it_goes(tmp_path, state):
    changes, said, curves = STATES[state]
    page = report(tmp_path, snapshot_of(**changes))
    for words in said:
        assert words in page.text, words
    assert page.svgs("plot") == curves
    assert "nan" not in page.text.lower().split()


def test_a_failed_run_shows_no_resolution_and_no_density_in_its_head(tmp_path):
    snapshot = snapshot_of(density=particle(), phasing=PHASING, verdict="failed")
    html = write_report(write_run(tmp_path / "run", snapshot)).read_text()
    head = html[html.index("<body>") : html.index("Curves")]
    assert "31.2" not in head
    assert 'class="ink"' not in head
    assert "not to be believed" in head


def test_a_result_file_alone_is_enough_and_its_neighbours_are_spared(tmp_path):
    run = write_run(tmp_path / "run", snapshot_of())
    (tmp_path / "report.html").write_text("mine")
    page = write_report(Path(shutil.copy(run / "reconstruction.h5", tmp_path / "tuesday.h5")))
    assert page == tmp_path / "tuesday_report.html"
    assert "settings.json is not beside the result" in Page(page.read_text()).text
    assert (tmp_path / "report.html").read_text() == "mine"


def test_the_command_prints_where_the_page_is(tmp_path, monkeypatch, capsys):
    def cli(*arguments):
        monkeypatch.setattr(sys, "argv", ["napari-xrai", "report", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, *capsys.readouterr()

    run = write_run(tmp_path / "run", snapshot_of())
    assert cli(run) == (0, f"{run / 'report.html'}\n", "")
    (run / "reconstruction.h5").unlink()
    (run / "report.html").unlink()
    status, _, err = cli(run)
    assert status == 2
    assert "has no result yet" in err
    assert err.count("\n") == 1
    assert not (run / "report.html").exists()
    assert cli(tmp_path / "none")[0] == 2


# ---- what is drawn


def test_curves_are_where_their_numbers_are():
    x, y = np.linspace(0, 0.04, 9), np.array([1, 0.9, 0.8, 0.6, 0.5, 0.3, 0.2, 0.1, 0.0])
    svg = plot([Series("cc", x, y)], Axis("q", 0), Axis("cc", 0.0, 1.0), [Level(0.5, "0.5")])
    points = drawn(svg, 0)
    assert np.allclose(np.polyval(np.polyfit(x, points[:, 0], 1), x), points[:, 0], atol=0.06)
    assert np.allclose(np.polyval(np.polyfit(y, points[:, 1], 1), y), points[:, 1], atol=0.06)
    assert points[0, 1] < points[-1, 1]  # up is more
    level = float(re.search(r'<line class="level"[^>]*y1="([\d.]+)"', svg).group(1))
    assert level == pytest.approx(points[4, 1], abs=0.06)


def test_a_logarithmic_axis_puts_decades_at_equal_distances():
    svg = plot([Series("i", [0, 1, 2], [1e-3, 1, 1e3])], Axis("q"), Axis("intensity", log=True))
    assert np.ptp(np.diff(drawn(svg, 0)[:, 1])) < 0.11


def test_gaps_stay_gaps_and_lone_points_are_dots():
    svg = plot([Series("", [0, 1, 2, 3, 4, 5], [1, 2, np.nan, 4, np.nan, np.inf])], Axis("x"), Axis("y"))
    line = re.search(r'<path class="line s0" d="([^"]*)"', svg).group(1)
    dots = re.search(r'<path class="dots s0" d="([^"]*)"', svg).group(1)
    assert (line.count("M"), line.count("L"), dots.count("M")) == (1, 1, 1)
    assert plot([Series("", [0, 1], [np.nan, np.nan])], Axis("x"), Axis("y")) is None
    assert plot([], Axis("x"), Axis("y")) is None


@pytest.mark.parametrize("end", [1e-9, 0.041, 0.7, 1, 3.3, 48_000, 2e12])
def test_ticks_are_round_few_and_inside(end):
    found = ticks(0, end)
    assert 2 <= len(found) <= 7
    assert found[0] == 0
    assert found[-1] <= end * (1 + 1e-9)
    step = found[1] - found[0]
    assert np.allclose(np.diff(found), step)
    assert f"{step:e}"[0] in "125"


@pytest.mark.parametrize("width", [0.04, 1, 3.1, 672, 1e5])
def test_a_scale_bar_is_round_and_fits(width):
    length = scale_bar(width)
    assert 0.1 * width <= length <= width / 3
    assert f"{length:e}"[0] in "125"


def test_density_pictures_have_x_to_the_right_and_y_and_z_up():
    data = np.zeros((N, N, N), np.float32)
    data[N // 2 + 3, N // 2 + 5, N // 2 + 8] = 1  # z, y, x
    along_z, along_y, along_x = (pixels(p.svg)[..., 1] for p in density_views(Volume(data, 1.0, "angstrom"))[:3])
    for ink, right, up in ((along_z, 8, 5), (along_y, 8, 3), (along_x, 5, 3)):
        rows, columns = np.indices(ink.shape)
        centre = (len(ink) - 1) / 2
        x, y = (ink * columns).sum() / ink.sum() - centre, centre - (ink * rows).sum() / ink.sum()
        assert x / y == pytest.approx(right / up, rel=0.05)


def test_sections_end_where_nothing_more_was_measured_are_clear_in_the_hole_and_ringed_at_the_radius():
    ring, measured = 8 * DQ, slice(N // 2 - 14, N // 2 + 15)
    for picture in intensity_sections(snapshot_of(), ring):
        image = pixels(picture.svg)
        n = len(image)
        seen = image[..., 3] > 128
        plane = ((radius() >= 2) & (radius() <= 14))[N // 2, measured, measured]
        assert seen.mean() == pytest.approx(plane.mean(), abs=0.02)
        assert not seen[n // 2, n // 2]
        drawn_at = float(re.search(r'class="ring"[^>]*r="([\d.]+)"', picture.svg).group(1))
        assert drawn_at / 240 == pytest.approx(8 / 29, abs=1e-3)


def test_the_pose_map_keeps_areas():
    rotation = random_rotations(4000, np.random.default_rng(0))
    ones = np.ones(4000, np.float32)
    svg = pose_map(Poses(np.arange(4000), matrix_to_quaternion(rotation).astype(np.float32), ones, ones, ones)).svg
    path = re.search(r'class="pose sure" d="([^"]*)"', svg).group(1)
    dots = np.array([point.split() for point in re.findall(r"M([\d.]+ [\d.]+)h0", path)], float)
    distance = np.linalg.norm(dots - (125, 125), axis=1) / 120
    assert distance.max() <= 1.001
    # evenly spread directions fill a disc evenly: a share f² within the radius f
    for f in (0.3, 0.6, 0.8):
        assert (distance < f).mean() == pytest.approx(f * f, abs=0.04)


def test_a_pole_and_a_side_are_where_they_should_be():
    half = np.sqrt(0.5)
    turns = np.array([[0, 0, 0, 1], [1, 0, 0, 0], [0, half, 0, half]], np.float32)  # beam along +z, −z, +x
    ones = np.ones(3, np.float32)
    svg = pose_map(Poses(np.arange(3), turns, ones, ones, ones)).svg
    groups = re.findall(r'class="pose sure" d="([^"]*)"', svg)
    dots = [np.array([p.split() for p in re.findall(r"M([\d.]+ [\d.]+)h0", g)], float) for g in groups]
    assert any(np.allclose(dot, (125, 125)) for dot in dots[0])
    assert any(np.allclose(dot, (375, 125)) for dot in dots[1])
    assert any(np.allclose(dot, (245, 125), atol=0.2) for dot in dots[0])


def test_where_views_are_missing_the_map_is_tinted():
    rotation = random_rotations(6000, np.random.default_rng(0))
    rotation = rotation[np.abs(rotation[:, 2, 2]) < 0.8]  # nothing seen along ±z
    ones = np.ones(len(rotation), np.float32)
    poses = Poses(np.arange(len(rotation)), matrix_to_quaternion(rotation).astype(np.float32), ones, ones, ones)
    coverage = ViewDensity([rotation[..., 2]]).coverage()
    for tint in re.findall(r"<image[^>]*base64,([^\"]+)", pose_map(poses, coverage).svg):
        image = np.array(Image.open(io.BytesIO(base64.b64decode(tint)))).astype(float)
        n = len(image)
        red, _, blue, strength = image[n // 2, n // 2]
        assert red > blue
        assert strength > 100
        red, _, blue, _ = image[n // 2, round(0.95 * n)]
        assert blue > red
        assert image[0, 0, 3] == 0  # outside the sphere


def test_the_radius_of_the_poses_appears_once_it_is_known(tmp_path):
    poses = snapshot_of().poses
    assert "Uncertainty of the poses" not in report(tmp_path / "before", snapshot_of()).text
    unknown = replace(poses, radius68=np.full(600, np.nan, np.float32), modes=np.ones(600, np.uint8))
    assert "Uncertainty of the poses" not in report(tmp_path / "early", snapshot_of(poses=unknown)).text
    known = replace(
        poses, radius68=np.full(600, 3.25, np.float32), modes=np.repeat([1, 2], (450, 150)).astype(np.uint8)
    )
    text = report(tmp_path / "after", snapshot_of(poses=known)).text
    assert "median 3.2°" in text
    assert "25% of the frames have more than one possible pose" in text


def test_errors_views_and_forecast_appear_where_a_run_has_them(tmp_path):
    snapshot = snapshot_of()
    q = np.array([0.025, 0.03, 0.035, 0.04])
    forecast = Forecast(
        np.array([1.0, 2, 5, 10]), np.array([600, 1200, 3000, 6000]), q, q - 0.002, q + 0.002, 0.05,
        np.zeros(4, bool), "resolution now 40 Å; forecast: with 2× as many frames about 33.3 Å",
    )  # fmt: skip
    coverage = replace(ViewDensity([np.eye(3)]).coverage(), sentence="few views along some directions")
    tenth = replace(snapshot.intensity, data=snapshot.intensity.data / 10)
    trust = Trust(tenth, (snapshot.intensity, snapshot.intensity), coverage, forecast)
    page = report(tmp_path / "done", replace(snapshot, trust=trust))
    assert page.svgs("plot") == 6
    for words in ("Resolution now 40 Å; forecast: ", "standard error of a voxel", "Few views along some directions"):
        assert words in page.text
    early = replace(snapshot.progress, fraction=0.4)
    assert "No forecast" in report(tmp_path / "early", replace(snapshot, trust=trust, progress=early)).text
