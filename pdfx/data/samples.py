"""From a sample's untrusted bytes to the sample, or to a sentence that says why not. Nothing is unpacked to disk."""

from __future__ import annotations

import io
import re
import tarfile
from dataclasses import dataclass
from typing import cast

from PIL import Image
from pydantic import ValidationError

from pdfx.data.schema import KEY_PATTERN, Record, Side, explain, identity_number
from pdfx.model.pictures import ImageError, decode_image

BLOCK = 512
MOST_MEMBERS = 1 << 14
"""Of one sample."""
_LONGEST_HEADER = 1 << 20
_PLAIN_TYPES = (b"0", b"\0")
_MAGIC = (b"ustar\x0000", b"ustar  \0")
"""POSIX and GNU."""
KINDS = ("unreachable", "damaged", "picture", "processor")
"""Why samples cannot be used: their bytes could not be fetched; tar or record are damaged; a picture is missing
or cannot be decoded; the model's processor refuses them."""
HEAD_BYTES = 4096
"""So much of a sample usually holds its record."""
MOST_SAMPLE_BYTES = 1 << 30
_MOST_RECORD_BYTES = 1 << 26


def plain_members(data: bytes) -> list[tuple[str, bytes]] | None:
    """Names and contents of all members in a tar's blocks, without the empty ones at its end; None if a header is not
    that of a plain file with a short name, or anything is damaged."""
    members: list[tuple[str, bytes]] = []
    place = 0
    while place < len(data):
        if len(members) == MOST_MEMBERS:
            return None
        header = data[place : place + BLOCK]
        if (
            len(header) != BLOCK
            or header[156:157] not in _PLAIN_TYPES
            or header[257:265] not in _MAGIC
            or header[345:346] != b"\0"
        ):
            return None
        try:
            name = header[:100].rstrip(b"\0").decode("utf-8")
            size, checksum = (int(field.strip(b" \0"), 8) for field in (header[124:136], header[148:156]))
        except ValueError:
            return None
        start = place + BLOCK
        place = start + -(-size // BLOCK) * BLOCK
        # The field of the checksum counts as eight spaces.
        if checksum != sum(header) - sum(header[148:156]) + 8 * 32 or size < 0 or place > len(data) or "\0" in name:
            return None
        members.append((name, data[start : start + size]))
    return members


class PlainTarInfo(tarfile.TarInfo):
    """For ``tarfile``, which would read long names, attributes and holes into memory whatever their size."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        member = super().frombuf(buf, encoding, errors)
        extends = member.type in (
            tarfile.XHDTYPE,
            tarfile.XGLTYPE,
            tarfile.SOLARIS_XHDTYPE,
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
        )
        if extends and member.size > _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header has {member.size} bytes")
        if member.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError("a file has holes")
        return member

    def _proc_gnusparse_10(self, *_):
        raise tarfile.ReadError("a file has holes")


class SampleError(ValueError):
    """One sample cannot be used, in a sentence. ``key`` is empty if the damage hides it, ``kind`` one of ``KINDS``."""

    def __init__(self, message: str, key: str = "", kind: str = "damaged"):
        super().__init__(message)
        self.key, self.kind = key, kind


def too_many(bad: int, of: int, share: float) -> bool:
    """Whether more than this share are bad; a single one is forgiven, unless the share is 0."""
    return bad > (max(share * of, 1) if share > 0 else 0)


@dataclass
class Sample:
    """One pair with its hard negatives. A side is ``{"text": str, "images": [PIL.Image in RGB, ...]}``."""

    key: str
    query: dict | None
    """None if the sample only adds its target to what queries are searched in."""
    target: dict
    negatives: list[dict]
    target_id: int
    """Signed 64-bit hash of the target's identity."""
    negative_ids: list[int]
    """The same of each hard negative."""
    shard: str = ""


@dataclass(frozen=True)
class Place:
    """Where a sample stands, for messages: its number within a shard."""

    shard: str
    number: int

    def error(self, key: str, reason: str, kind: str = "damaged") -> SampleError:
        name = f"sample '{key}' (number {self.number})" if key else f"sample number {self.number}"
        return SampleError(f"In shard {self.shard}, {name} cannot be used: {reason}.", key, kind)


def open_members(data: bytes, place: Place) -> tuple[str, dict[str, bytes]]:
    """A sample's key, and its members' bytes by suffix. Raises SampleError unless they are plain and of one key."""
    members: dict[str, bytes] = {}
    keys: set[str] = set()
    for name, content in plain_members(data) or _any_members(data, place):
        key, _, suffix = name.partition(".")
        if suffix in members:
            raise place.error("", f"the member {_shown(name)} is not a plain file or is there twice")
        keys.add(key)
        members[suffix] = content
    if len(keys) != 1 or "json" not in members:
        listed = [", ".join(map(_shown, sorted(names)[:8])) or "none" for names in (keys, members)]
        found = f"has the keys {listed[0]} with the members {listed[1]}"
        raise place.error("", f"it must be the members of one key with a '.json' among them, and {found}")
    return _checked_key(keys.pop(), place), members


def _any_members(data: bytes, place: Place) -> list[tuple[str, bytes]]:
    """Names and contents as the standard library reads them. Raises SampleError like ``open_members``."""
    members: list[tuple[str, bytes]] = []
    stop = 0
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:", tarinfo=PlainTarInfo) as archive:
            for member in archive:
                if len(members) == MOST_MEMBERS:
                    raise place.error("", f"it has more than {MOST_MEMBERS} members")
                content = archive.extractfile(member) if member.isreg() and not member.issparse() else None
                if content is None:
                    raise place.error("", f"the member {_shown(member.name)} is not a plain file or is there twice")
                members.append((member.name, content.read()))
                stop = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    except SampleError:
        raise
    # tarfile meets damaged bytes with many types of exception (TarError, OSError, ValueError, RecursionError, ...).
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise place.error("", f"its bytes are not a sound tar ({reason})") from error
    if stop != len(data):  # tarfile takes a damaged header for the end
        raise place.error("", f"its bytes are not a sound tar (after {stop} of {len(data)} bytes there is no member)")
    return members


def parse_head(head: bytes, place: Place) -> tuple[str, Record] | None:
    """Key and record from a sample's first bytes; None if they do not hold the record, or are damaged."""
    try:
        member = tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "strict")
    except Exception:  # see open_members, which will tell
        return None
    key, _, suffix = member.name.partition(".")
    stop = tarfile.BLOCKSIZE + member.size
    if suffix != "json" or not member.isreg() or not tarfile.BLOCKSIZE <= stop <= len(head):
        return None
    return _checked_key(key, place), parse_record(head[tarfile.BLOCKSIZE : stop], key, place)


def parse_record(data: bytes, key: str, place: Place) -> Record:
    """The record of a JSON member, with every ``target_id``. Raises SampleError if it is none of a shard."""
    if len(data) > _MOST_RECORD_BYTES:
        reason = f"its record has {len(data)} bytes, more than the {_MOST_RECORD_BYTES} that are read of one"
        raise place.error(key, reason)
    try:
        record = Record.model_validate_json(data)
    except ValidationError as error:
        raise place.error(key, f"in its record, {explain(error)}") from None
    if record.target_id is None or any(negative.target_id is None for negative in record.negatives):
        raise place.error(key, "in its record, 'target_id' is missing")
    return record


def parse_sample(data: bytes, place: Place, max_image_pixels: int) -> Sample:
    """A whole sample with decoded images. Raises SampleError if the bytes, the record or an image are damaged."""
    key, members = open_members(data, place)
    record = parse_record(members["json"], key, place)
    decoded = {name: decode_side(side, members, key, place, max_image_pixels) for name, side in record.sides()}
    return Sample(
        key=key,
        query=decoded.get("query"),
        target=decoded["target"],
        negatives=[decoded[f"negatives.{m}"] for m in range(len(record.negatives))],
        target_id=identity_number(cast(str, record.target_id)),
        negative_ids=[identity_number(cast(str, negative.target_id)) for negative in record.negatives],
        shard=place.shard,
    )


def decode_side(side: Side, members: dict[str, bytes], key: str, place: Place, max_image_pixels: int) -> dict:
    """A side's text and decoded images. Raises SampleError if an image is missing or damaged."""
    return {"text": side.text, "images": [_image(name, members, key, place, max_image_pixels) for name in side.images]}


def _image(name: str, members: dict[str, bytes], key: str, place: Place, max_image_pixels: int) -> Image.Image:
    if name not in members:
        raise place.error(key, f"the image {_shown(name)} is missing", "picture")
    try:
        return decode_image(members[name], max_image_pixels)
    except ImageError as error:
        raise place.error(key, f"the image {_shown(name)} cannot be used: {error}", "picture") from error


def _checked_key(key: str, place: Place) -> str:
    if not re.match(KEY_PATTERN, key):
        raise place.error("", f"its key is {_shown(key)}, and a key is 1 to 64 letters, digits, '_' and '-'")
    return key


def _shown(name: str) -> str:
    """A name as a message may hold it: short, on one line, and without signs that steer a terminal."""
    return ascii(name if len(name) <= 80 else name[:77] + "...")
