"""Which storage a place has: a folder of this machine, or whatever fsspec reaches."""

from __future__ import annotations

from pathlib import Path

from pdfx.data.storage.base import Reading, Storage
from pdfx.data.storage.local import LocalFolder
from pdfx.host.urls import is_url


def open_storage(place: str | Path | Storage, reading: Reading | None = None) -> Storage:
    """The storage at a local path or an fsspec URL; a storage is given back as it is.

    Raises:
        UserError: the URL's protocol is unknown, or its package is not installed.
    """
    if not isinstance(place, (str, Path)):
        return place
    if not is_url(place):
        return LocalFolder(place)
    # Imported here, since most runs read local folders and fsspec costs each of their processes time.
    from pdfx.data.storage.remote import RemoteFolder

    return RemoteFolder(str(place), reading or Reading())
