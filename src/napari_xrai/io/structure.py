"""PDB and mmCIF structures, and the built-in particles, as scatterers."""

from __future__ import annotations

from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray

from ..core.particle import BUILTIN_PARTICLES, Particle, Scatterers, builtin_particle, gaussian_form
from .source import InputError

ASSEMBLY = ":assembly"


def read_particle(particle: str | Path) -> Particle:
    """A particle by the name of a built-in one, or from a structure file.

    Parameters
    ----------
    particle : str or Path
        ``demo``, ``cube``, …; or a PDB or mmCIF file, gzipped or not, taken as deposited: every atom of the first
        model, weighted by occupancy, at rest. With ``:assembly`` after the file name, its first biological assembly.

    Returns
    -------
    Particle
        Centred on the middle of its bounding box; form factors of International Tables C (1992).

    Raises
    ------
    InputError
        If there is no such file or particle, or it holds no atoms.
    """
    name = str(particle)
    if name in BUILTIN_PARTICLES and not Path(name).is_file():
        return builtin_particle(name)
    assembly = name.endswith(ASSEMBLY)
    path = Path(name.removesuffix(ASSEMBLY))
    if not path.is_file():
        raise InputError(f"{path} is neither a file nor a built-in particle ({', '.join(BUILTIN_PARTICLES)})")
    try:
        structure = gemmi.read_structure(str(path))
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read as PDB or mmCIF ({str(error).splitlines()[0]})") from error
    if len(structure) == 0:
        raise InputError(f"{path} holds no atoms: give a PDB or mmCIF file")
    model, group = structure[0], None
    if assembly:
        described = [a for a in structure.assemblies if any(len(g.operators) for g in a.generators)]
        if not described:
            raise InputError(f"{path} describes no biological assembly: leave out {ASSEMBLY}")
        chosen = described[0]
        model = gemmi.make_assembly(chosen, model, gemmi.HowToNameCopiedChain.AddNumber)
        group = _point_group(chosen)
    return _particle(path, model, group)


def _particle(path: Path, model: gemmi.Model, group: NDArray[np.float64] | None) -> Particle:
    atoms: dict[str, list[tuple[float, float, float, float]]] = {}
    for site in model.all():
        atom = site.atom
        atoms.setdefault(atom.element.name, []).append((atom.pos.x, atom.pos.y, atom.pos.z, atom.occ))
    tables = {element: np.array(rows) for element, rows in atoms.items()}
    every = np.concatenate(list(tables.values())) if tables else np.zeros((0, 4))
    if not len(every) or not np.isfinite(every).all() or every[:, 3].sum() <= 0:
        raise InputError(f"{path} holds no atoms with coordinates and occupancy: give a PDB or mmCIF file")
    centre = (every[:, :3].min(axis=0) + every[:, :3].max(axis=0)) / 2
    groups = []
    for element, table in tables.items():
        it92 = gemmi.Element(element).it92
        if it92 is None or element == "X":
            raise InputError(f"{path} has {len(table)} atoms of unknown element: correct its element column")
        form = gaussian_form(np.array(it92.a), np.array(it92.b), it92.c)
        groups.append(Scatterers(table[:, :3] - centre, table[:, 3], form))
    # an atom reaches about 1.5 Å beyond its nucleus
    diameter = 2 * (float(np.linalg.norm(every[:, :3] - centre, axis=1).max()) + 1.5)
    return Particle(path.name.split(".")[0], tuple(groups), diameter, group)


def _point_group(assembly: gemmi.Assembly) -> NDArray[np.float64] | None:
    """Rotations of an assembly made by one set of operators, if they are a group; None otherwise: not known."""
    if len(assembly.generators) != 1:
        return None
    operators = [np.array(op.transform.mat.tolist()) for op in assembly.generators[0].operators]
    rotations = np.array(operators)
    products = np.einsum("aij,bjk->abik", rotations, rotations).reshape(-1, 9)
    nearest = np.abs(products[:, None] - rotations.reshape(1, -1, 9)).max(axis=2).min(axis=1)
    return rotations if nearest.max() < 1e-3 else None
