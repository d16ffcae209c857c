"""What all sections of a recipe have in common."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict

from pdfx.host.urls import is_url


class Section(BaseModel):
    """Base of all sections: unknown keys are refused and every assignment is validated."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)


def expanded(path: str) -> str:
    """A path with the home directory for ``~`` and the values of variables (``$NAME``, ``${NAME}``); a URL as it is.
    Raises ValueError."""
    if not path.strip():
        raise ValueError("it is empty; a variable of the shell may not have been set")
    if is_url(path):
        return path
    missing = [name for name in re.findall(r"\$\{?([A-Za-z_]\w*)", path) if name not in os.environ]
    if missing:
        raise ValueError(f"the variable {missing[0]} is not set; set it, or write the path without it")
    try:
        return str(Path(found).expanduser()) if (found := os.path.expandvars(path)).startswith("~") else found
    except RuntimeError:
        raise ValueError(
            f"'{found.partition('/')[0]}' names no user; write './{found}' for a folder that is called so"
        ) from None


PathText = Annotated[str, AfterValidator(expanded)]
"""A path, the name of something on the hub, or a URL."""


def local(path: str) -> str:
    """Raises ValueError for a URL."""
    if is_url(path):
        raise ValueError("it must be a path on this machine, not a URL")
    return path


LocalPath = Annotated[PathText, AfterValidator(local)]


def annotation_of(section: type[BaseModel], keys: Sequence[str]) -> Any:
    """The type of a setting, or None if there is none."""
    annotation: Any = section
    for key in keys:
        field = getattr(section_of(annotation), "model_fields", {}).get(key)
        annotation = field.annotation if field else None
    return annotation


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a type is, or may be."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(section_of, get_args(annotation))), None)
