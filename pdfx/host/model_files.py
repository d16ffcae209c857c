"""The files of a model's folder, looked over before transformers opens them: it would wait for a pipe for ever, and
trusts sizes."""

from __future__ import annotations

import os
from pathlib import Path

from pdfx.errors import UserError
from pdfx.host.reading import open_plain, parse_json, read_bounded
from pdfx.host.tensor_files import TensorFile

_LARGEST_JSON = 1 << 28


def require_sound_files(place: str | Path) -> None:
    """Nothing for a place that is not a folder here, such as a name on the hub.

    Raises:
        UserError: something in the folder is neither a plain file nor a folder, a JSON file is too large, or a
            safetensors file's header is not sound.
    """
    for path in sorted(Path(place).iterdir()) if Path(place).is_dir() else ():
        if path.is_dir() or not path.exists():
            continue
        try:
            descriptor = open_plain(path)
            size = os.fstat(descriptor).st_size
            os.close(descriptor)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}.") from None
        if path.suffix == ".json" and size > _LARGEST_JSON:
            raise UserError(
                f"{path} cannot be read: it has {size} bytes, more than the {_LARGEST_JSON} that are read of "
                "such a file."
            )
        if path.name.endswith(("config.json", ".index.json")):
            try:
                # Others write keys twice.
                parse_json(read_bounded(path), unique=False)
            except (OSError, ValueError) as error:
                raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
        if path.suffix == ".safetensors":
            TensorFile(path)
