"""A form for a pydantic model: one row per setting, empty where it is left open: what that means stands in grey."""

from __future__ import annotations

import types
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from qtpy.QtWidgets import QComboBox, QFormLayout, QLineEdit, QWidget

from ..io.source import InputError
from ..settings import unset_words

M = TypeVar("M", bound=BaseModel)


class SettingsForm(QWidget):
    """Made from the model's fields: words from their descriptions, limits checked by the model itself."""

    def __init__(self, model: type[BaseModel], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._fields: dict[str, QComboBox | QLineEdit] = {}
        layout = QFormLayout(self)
        layout.setContentsMargins(0, 2, 0, 2)
        layout.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.ExpandingFieldsGrow)
        for name, info in model.model_fields.items():
            widget = self._fields[name] = _editor(name, info)
            widget.setObjectName(f"xrai-set-{name}")
            widget.setToolTip(info.description or "")
            layout.addRow(name.replace("_", " "), widget)

    def values(self, model: type[M]) -> M:
        """The settings as they stand in the form.

        Raises
        ------
        InputError
            If one cannot be used; the message names it.
        """
        given = {name: text for name, editor in self._fields.items() if (text := _text(editor))}
        try:
            return model.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0]).replace("_", " ")
            raise InputError(f"settings, {name}: {first['input']!r} cannot be used ({first['msg'].lower()})") from error


def _editor(name: str, info: FieldInfo) -> QComboBox | QLineEdit:
    choices = _choices(info.annotation)
    if choices:
        box = QComboBox()
        box.addItems(choices)
        box.setCurrentText(str(info.default))
        return box
    line = QLineEdit("" if info.default is None else str(info.default))
    line.setPlaceholderText(unset_words(name) if info.default is None else "")
    return line


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    if isinstance(annotation, types.UnionType):
        return next((found for part in get_args(annotation) if (found := _choices(part))), [])
    return []


def _text(editor: QComboBox | QLineEdit) -> str:
    return str(editor.currentText() if isinstance(editor, QComboBox) else editor.text()).strip()
