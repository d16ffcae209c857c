"""S3 through s3fs: answers are read no further than was asked for, and files stay the ones that were seen first."""

from __future__ import annotations

from typing import Any

from s3fs import S3FileSystem

from pdfx.data.storage.remote_errors import Sightings, read_at_most
from pdfx.host.reading import SMALL


class RangedS3(S3FileSystem):
    """Configured as s3fs's own."""

    sightings: Sightings

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, limit: int = SMALL) -> bytes:
        """A whole file of at most ``limit`` bytes, or its bytes from ``start`` to ``end``. Raises ValueError if more
        came, and ReplacedError if it is another file than before."""
        bucket, key, version = self.split_path(path)
        options = {
            **({"VersionId": version} if version else {}),
            **({} if end is None else {"Range": f"bytes={start}-{end - 1}"}),
        }
        answer = await self._call_s3("get_object", Bucket=bucket, Key=key, **options)
        try:
            length = answer.get("ContentLength")
            total = answer["ContentRange"].rpartition("/")[2] if "ContentRange" in answer else length
            self.sightings.check(path, ETag=answer.get("ETag"), size=int(total) if str(total).isdecimal() else None)
            return await read_at_most(
                answer["Body"].read, limit if start is None or end is None else end - start, length
            )
        finally:
            answer["Body"].close()

    async def _info(self, path: str, **options: Any) -> dict:
        info = await super()._info(path, **options)
        self.sightings.check(path, ETag=info.get("ETag"), size=info["size"])
        return info
