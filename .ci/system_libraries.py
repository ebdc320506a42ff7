"""What Qt and a window without a screen need from the system, beyond Python: looked for, and installed where we may.

On Debian or Ubuntu as root the missing packages are installed; elsewhere the one line to run is printed.
"""

import ctypes
import os
import shutil
import subprocess
import sys

PROGRAMS = {"Xvfb": "xvfb", "xauth": "xauth"}
LIBRARIES = {
    "libEGL.so.1": "libegl1",
    "libdbus-1.so.3": "libdbus-1-3",
    "libxkbcommon-x11.so.0": "libxkbcommon-x11-0",
    "libxcb-cursor.so.0": "libxcb-cursor0",
    "libxcb-icccm.so.4": "libxcb-icccm4",
    "libxcb-keysyms.so.1": "libxcb-keysyms1",
    "libxcb-shape.so.0": "libxcb-shape0",
    "libglib-2.0.so.0": "libglib2.0-0",
    "libfontconfig.so.1": "libfontconfig1",
}


def loads(library: str) -> bool:
    """Whether the dynamic linker finds `library`."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def main() -> int:
    """Install what is missing; 1 if that is left to the user."""
    if not sys.platform.startswith("linux"):
        return 0
    missing = [package for program, package in PROGRAMS.items() if not shutil.which(program)]
    missing += [package for library, package in LIBRARIES.items() if not loads(library)]
    if not missing:
        return 0
    install = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    if shutil.which("apt-get") and os.geteuid() == 0:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update"], check=True, env=environment)
        subprocess.run(install, check=True, env=environment)
        return 0
    if shutil.which("apt-get"):
        print(f"Some system libraries are missing. Run this, then try again:\n  sudo {' '.join(install)}")
    else:
        print(f"Some system libraries are missing; Debian calls them: {' '.join(missing)}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
