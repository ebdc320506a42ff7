"""The arrows of the house: which room may import which, and what importing the package must not cost."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import napari_xrai

PACKAGE = Path(napari_xrai.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
WINDOWS = {"qtpy", "PyQt6", "PySide6", "napari", "superqt", "magicgui", "vispy", "pyqtgraph"}
OPENERS = {"h5py", "mrcfile", "gemmi"}


def imports(path: Path) -> set[str]:
    """Every module imported anywhere in a file, under its absolute name; each part of `from x import y` as x.y."""
    package = ("napari_xrai", *path.relative_to(PACKAGE).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
            base = (base + (node.module or "")).rstrip(".")
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def room(path: Path) -> str:
    inside = path.relative_to(PACKAGE)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def offenders(rooms, forbidden):
    return [
        (str(path.relative_to(PACKAGE)), name)
        for path in MODULES
        if room(path) in rooms
        for name in sorted(imports(path))
        if forbidden(name)
    ]


def test_the_scan_sees_imports():
    assert "napari_xrai.core.frames.Snapshot" in imports(PACKAGE / "run.py")
    assert "h5py" in imports(PACKAGE / "run.py")
    assert {"core", "io", "run", "session", "cli"} <= {room(path) for path in MODULES}


def test_core_imports_no_window_no_file_format_no_pydantic_and_no_other_room():
    def forbidden(name):
        ours = name.startswith("napari_xrai") and not name.startswith("napari_xrai.core")
        return ours or name.split(".")[0] in WINDOWS | OPENERS | {"pydantic", "typer", "rich"}

    assert offenders({"core"}, forbidden) == []


def test_io_imports_only_core():
    def forbidden(name):
        ours = name.startswith("napari_xrai.") and not name.startswith(("napari_xrai.core", "napari_xrai.io"))
        return (ours and name != "napari_xrai.__version__") or name.split(".")[0] in WINDOWS | {"typer", "rich"}

    assert offenders({"io"}, forbidden) == []


def test_only_the_window_knows_windows():
    everywhere_else = {room(path) for path in MODULES} - {"widgets", "layers", "contributions", "demo"}
    assert offenders(everywhere_else, lambda name: name.split(".")[0] in WINDOWS) == []
    assert offenders({"layers"}, lambda name: name.split(".")[0] in WINDOWS - {"napari"}) == []


def test_nothing_but_io_and_run_opens_data_files():
    others = {room(path) for path in MODULES} - {"io", "run", "run_result"}  # what the run folder holds
    assert offenders(others, lambda name: name.split(".")[0] in OPENERS) == []


@pytest.mark.parametrize("module", ["napari_xrai", "napari_xrai.settings", "napari_xrai.cli"])
def test_importing_is_light(module):
    heavy = {"torch", "qtpy", "napari", "numba", "vispy"} if module != "napari_xrai" else {"torch", "qtpy", "napari"}
    code = f"import sys, {module}; print(*({heavy!r} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []


def test_help_waits_for_nothing_heavy():
    code = (
        "import sys\n"
        "from napari_xrai.cli import main\n"
        "sys.argv = ['napari-xrai', '--help']\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print(*({'torch', 'napari', 'scipy', 'h5py'} & sys.modules.keys()), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "reconstruct" in result.stdout
    assert result.stderr.split() == []
