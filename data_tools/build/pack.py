"""From one record to the bytes of one sample, or to the reason why there is none. This is what worker processes do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from data_tools.build.settings import Encoding
from data_tools.build.shard_writer import count_sample, pack_members
from data_tools.sources.base import SourceRecord
from pdfx.data.picture_folder import PictureError, PictureFolder
from pdfx.data.schema import Record, content_identity, identity_number
from pdfx.model.pictures import ImageError, decode_image, image_header
from pdfx.model.texts import is_blank

MAX_TEXT_CHARACTERS, MAX_IDENTITY_CHARACTERS, MAX_IMAGES = 1_000_000, 1000, 1000
"""Of one text, of one name of a target, and of one record. A text so long is most often a whole file that a mistake put
into a field."""


@dataclass
class Packed:
    """A sample ready to be written.

    Attributes:
        data: what ``pack_members`` gave.
        counts: what ``count_sample`` gave.
        content: a signed 64-bit number of the texts and stored pictures of query and target.
        parts: such numbers of the query, of the target, and of each picture, by ``settings.LEAKS``, of the pictures as
            given and as stored.
        stamp: see ``Packer.stamp``.
    """

    key: str
    data: bytes
    counts: Counter[str]
    content: int
    parts: dict[str, list[int]] = field(default_factory=dict)
    stamp: int = 0


@dataclass
class Rejected:
    """A record that gives no sample.

    Attributes:
        kind: in a few words, what such records are counted by.
        reason: the part of a sentence that says why.
        stamp: see ``Packer.stamp``.
    """

    kind: str
    reason: str
    stamp: int = 0


@dataclass
class _Picture:
    given: bytes
    stored: bytes
    extension: str
    size: tuple[int, int]


@dataclass
class Packer:
    """Packs records. Safe to pickle.

    Args:
        with_parts: whether ``Packed.parts`` is filled.
    """

    folder: PictureFolder
    encoding: Encoding
    max_image_pixels: int
    with_parts: bool = False

    def __call__(self, block: list[tuple[int, SourceRecord]]) -> list[Packed | Rejected]:
        """What becomes of each of (number in the source, record)."""
        # Taken before the pictures are read: one that is replaced meanwhile is then noticed.
        stamps = [self.stamp(source) for _, source in block]
        return [
            replace(self._pack_or_reject(number, source), stamp=stamp)
            for (number, source), stamp in zip(block, stamps, strict=True)
        ]

    def glance(self, source: SourceRecord) -> str | None:
        """The kind of problem that a record has, found without reading its pictures."""
        if source.record is None or _problem(source.record):
            return source.kind
        try:
            for name in self.outside(source):
                self.folder.require(name)
        except PictureError as error:
            return error.kind
        return None

    def stamp(self, source: SourceRecord) -> int:
        """A number that changes if a file of the record's pictures is edited, replaced, added or removed; 0 if the
        source holds all that it has."""
        names = self.outside(source)
        return identity_number(" ".join(f"{name} {self.folder.stamp(name)}" for name in names)) if names else 0

    def outside(self, source: SourceRecord) -> list[str]:
        """The names of those pictures that the source does not hold itself."""
        if source.record is None:
            return []
        return [name for _, side in source.record.sides() for name in side.images if name not in source.pictures]

    def _pack_or_reject(self, number: int, source: SourceRecord) -> Packed | Rejected:
        if source.record is None:
            return Rejected(source.kind, str(source.problem))
        if (problem := _problem(source.record)) is not None:
            return Rejected(source.kind, problem)
        try:
            return self._pack(source.record, source.record.key or f"{number + 1:09d}", source.pictures)
        except PictureError as error:
            return Rejected(error.kind, str(error))

    def _pack(self, record: Record, key: str, own: dict[str, bytes]) -> Packed:
        packed = record.model_copy(deep=True, update={"key": key})
        pictures: dict[str, _Picture] = {}
        for prefix, side in packed.sides():
            of_side = [self._picture(name, own) for name in side.images]
            side.images = [f"{prefix}.{i}.{picture.extension}" for i, picture in enumerate(of_side)]
            pictures |= zip(side.images, of_side, strict=True)
        identities = {
            prefix: content_identity(side.text, [pictures[name].stored for name in side.images])
            for prefix, side in packed.sides()
        }
        packed.target_id = packed.target_id or identities["target"]
        for number, negative in enumerate(packed.negatives):
            negative.target_id = negative.target_id or identities[f"negatives.{number}"]
        counts = count_sample(packed, {name: (len(picture.stored), picture.size) for name, picture in pictures.items()})
        counts["images_reencoded"] = sum(picture.stored is not picture.given for picture in pictures.values())
        members = {
            "json": packed.model_dump_json(exclude_none=True).encode(),
            **{name: picture.stored for name, picture in pictures.items()},
        }
        content = identity_number(f"{identities.get('query')} {identities['target']}")
        parts = _parts(packed, identities, pictures) if self.with_parts else {}
        return Packed(key, pack_members(key, members), counts, content, parts)

    def _picture(self, name: str, own: dict[str, bytes]) -> _Picture:
        given = own[name] if name in own else self.folder.read(name)
        try:
            extension, size = image_header(given, self.max_image_pixels)
            encoded = self.encoding.encode(decode_image(given, self.max_image_pixels), extension)
        except ImageError as error:
            place = name if name in own else self.folder.describe(name)
            raise PictureError("unusable image", f"the image {place} cannot be used: {error}") from None
        return _Picture(given, *(encoded or (given, extension, size)))


def _problem(record: Record) -> str | None:
    """Why a record of the schema is not to become a sample. Shards that exist may hold such ones, and are read."""
    for name, side in record.sides():
        if len(side.text) > MAX_TEXT_CHARACTERS:
            return (
                f"'{name}.text' has {len(side.text)} characters, more than the {MAX_TEXT_CHARACTERS} that are allowed"
            )
        if not side.images and is_blank(side.text):
            return f"'{name}' is empty: its text has no visible character, and there is no image"
    if sum(len(side.images) for _, side in record.sides()) > MAX_IMAGES:
        return f"it has more than the {MAX_IMAGES} images that are allowed"
    identities = (record.target_id, *(negative.target_id for negative in record.negatives), *(record.candidates or ()))
    if any(len(identity or "") > MAX_IDENTITY_CHARACTERS for identity in identities):
        return f"a 'target_id' or candidate has more than the {MAX_IDENTITY_CHARACTERS} characters that are allowed"
    return None


def _parts(packed: Record, stored: dict[str, str], pictures: dict[str, _Picture]) -> dict[str, list[int]]:
    """``Packed.parts``; ``stored`` holds the identities of the sides as they are stored."""
    parts: dict[str, list[int]] = {"query": []}
    for name, side in packed.sides():
        if name in ("query", "target"):
            given = content_identity(side.text, [pictures[image].given for image in side.images])
            parts[name] = _numbers([stored[name], given])
    data = (data for picture in pictures.values() for data in (picture.given, picture.stored))
    return {**parts, "image": _numbers(content_identity("", [one]) for one in data)}


def _numbers(identities: Iterable[str]) -> list[int]:
    return [identity_number(identity) for identity in dict.fromkeys(identities)]
