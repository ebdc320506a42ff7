"""What was found in the files, in words, with a field for each number that they do not hold."""

from __future__ import annotations

from dataclasses import replace

from qtpy.QtCore import QLocale, Signal
from qtpy.QtGui import QDoubleValidator
from qtpy.QtWidgets import QComboBox, QGridLayout, QLabel, QLineEdit, QVBoxLayout, QWidget

from .inputs import Found, Inputs

NUMBERS = {"energy_eV": ("energy", "eV"), "distance_m": ("distance", "m"), "pixel_size_m": ("pixel", "m")}
POLARIZATIONS = ("unknown", "x", "y", "none")
ASKED = {
    "wavelength": ("energy_eV",),
    "geometry": ("energy_eV", "distance_m", "pixel_size_m"),
    "polarisation": ("polarization",),
}
HINTS = {
    "wavelength": "else sizes stay in voxels",
    "geometry": "Drop their detector file too, or give these numbers.",
}

CELLS_IN_A_ROW, COLUMNS_OF_A_CELL = 2, 3

REMEMBERED = "Remembered from the last time: change what is different now."


class FoundView(QWidget):
    """The sentence, and below it the fields for what is missing. `edited` tells that one was filled in."""

    edited = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._sentence = QLabel(self)
        self._sentence.setObjectName("xrai-found")
        self._sentence.setWordWrap(True)
        self._aside = QLabel(self)
        self._hint = QLabel(self)
        self._hint.setWordWrap(True)
        self._fields: dict[str, QLineEdit] = {}
        self._cells: dict[str, tuple[QWidget, ...]] = {}
        self._polarization = QComboBox(self)
        self._polarization.setObjectName("xrai-polarization")
        self._polarization.addItems(POLARIZATIONS)
        self._polarization.activated.connect(self.edited)
        grid = QGridLayout()
        grid.setHorizontalSpacing(5)
        grid.setVerticalSpacing(3)
        grid.setColumnStretch(CELLS_IN_A_ROW * COLUMNS_OF_A_CELL, 1)
        for name, (label, unit) in NUMBERS.items():
            self._add_cell(grid, name, label, self._number_field(name, f"{label} ({unit})"), unit)
        self._add_cell(grid, "polarization", "polarised along", self._polarization, "")
        grid.addWidget(self._aside, 0, COLUMNS_OF_A_CELL, 1, -1)  # there is a second cell, or an aside
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(3)
        layout.addWidget(self._sentence)
        layout.addLayout(grid)
        layout.addWidget(self._hint)
        self.show_found(Found(Inputs()))

    def show_found(self, found: Found) -> None:
        """Say what there is, and offer the fields for what there is not."""
        description, inputs = found.description, found.inputs
        missing = [] if description is None else description.missing
        waiting = description is None and (inputs.detector or inputs.mask)
        self._sentence.setText(
            description.sentence if description else "Now drop the frames that go with it." if waiting else ""
        )
        self._aside.setText(HINTS["wavelength"] if "wavelength" in missing and "geometry" not in missing else "")
        self._hint.setText(HINTS["geometry"] if "geometry" in missing else "")
        asked = {field for name in missing for field in ASKED.get(name, ())}
        asked |= {name for name in self._cells if getattr(inputs, name) is not None}
        for name, cell in self._cells.items():
            for part in cell:
                part.setVisible(name in asked)
        self._aside.setVisible(bool(self._aside.text()))
        for name, field in self._fields.items():
            given = getattr(inputs, name)
            if name not in asked:
                field.clear()
            elif given is not None and not field.text():
                _show_number(field, given)
        if "polarization" not in asked:
            self._polarization.setCurrentIndex(0)
        self._offer(found, asked)
        self._hint.setVisible(bool(self._hint.text()))
        self.setVisible(bool(self._sentence.text()))

    def _offer(self, found: Found, asked: set[str]) -> None:
        """Fill empty fields with what was given for such frames the last time, and say so."""
        offered = False
        for name, value in found.remembered.items():
            field = self._fields.get(name)
            if name not in asked:
                continue
            if field is not None and not field.text():
                _show_number(field, value)
                offered = True
            elif name == "polarization" and self._polarization.currentIndex() == 0:
                self._polarization.setCurrentText(str(value))
                offered = True
        if offered:
            self._hint.setText(f"{self._hint.text()} {REMEMBERED}".strip())

    def filled(self, inputs: Inputs) -> Inputs:
        """`inputs` with what stands in the fields."""
        chosen = self._polarization.currentText()
        return replace(
            inputs,
            energy_eV=_number(self._fields["energy_eV"]),
            distance_m=_number(self._fields["distance_m"]),
            pixel_size_m=_number(self._fields["pixel_size_m"]),
            polarization=None if chosen == "unknown" else chosen,
        )

    def _number_field(self, name: str, accessible: str) -> QLineEdit:
        field = self._fields[name] = QLineEdit(self)
        field.setObjectName(f"xrai-{name}")
        validator = QDoubleValidator(1e-12, 1e12, 12, field)
        validator.setLocale(QLocale.c())  # a point, as float() reads it
        field.setValidator(validator)
        field.setFixedWidth(58)
        field.setAccessibleName(accessible)
        field.editingFinished.connect(self.edited)
        return field

    def _add_cell(self, grid: QGridLayout, name: str, label: str, field: QWidget, unit: str) -> None:
        """The next label, field and unit: two to a row, for the dock is narrow."""
        row, place = divmod(len(self._cells), CELLS_IN_A_ROW)
        self._cells[name] = cell = QLabel(label, self), field, QLabel(unit, self)
        for column, part in enumerate(cell, COLUMNS_OF_A_CELL * place):
            grid.addWidget(part, row, column)


def _show_number(field: QLineEdit, value: float) -> None:
    field.setText(f"{value:.10g}")
    field.setCursorPosition(0)  # of more digits than there is room for, the first are seen


def _number(field: QLineEdit) -> float | None:
    return float(field.text()) if field.hasAcceptableInput() else None
