"""The schema of a sample, as a JSONL record and as a shard's JSON member, and of the index of a set of shards."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field, StringConstraints, ValidationError, model_validator

from pdfx.errors import nearest, shortened
from pdfx.host.reading import require_few_values

INDEX_NAME = "index.json"
KEY_PATTERN = r"^[A-Za-z0-9_-]{1,64}\Z"
"""No dots (webdataset cuts names there), no slashes (a key is never a path), short enough for a plain tar header."""

Key = Annotated[str, StringConstraints(pattern=re.compile(KEY_PATTERN))]


Identity = Annotated[str, Field(min_length=1)]
_ONE_MISTAKE = FailFast()
"""Of a list one mistake is reported; millions would fill the memory."""


class StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @classmethod
    def model_validate_json(cls, json_data, **options):
        try:
            require_few_values(json_data)
        except ValueError as error:
            details = {"type": "json_invalid", "loc": (), "input": None, "ctx": {"error": str(error)}}
            raise ValidationError.from_exception_data(cls.__name__, [details]) from None
        return super().model_validate_json(json_data, **options)


class Side(StrictModel):
    """A text, images, or both. ``images`` holds paths in a record and member suffixes in a shard."""

    text: str = ""
    images: Annotated[list[str], _ONE_MISTAKE] = []

    @model_validator(mode="after")
    def check_not_empty(self):
        if not self.text and not self.images:
            raise ValueError("there is neither a text nor an image; give at least one of 'text' and 'images'")
        return self


class Negative(Side):
    target_id: Identity | None = None


class Record(StrictModel):
    """One sample. ``target_id`` names the target's identity: records with the same one are not negatives of one
    another.

    Two things exist for evaluation alone: a record without a query adds its target to what queries are searched in, and
    ``candidates`` restricts a query's search to the targets of these identities.
    """

    key: Key | None = None
    query: Side | None = None
    target: Side
    negatives: Annotated[list[Negative], _ONE_MISTAKE] = []
    target_id: Identity | None = None
    candidates: Annotated[list[Identity] | None, _ONE_MISTAKE] = None

    def sides(self) -> list[tuple[str, Side]]:
        """Every side with the prefix that the names of its image members bear."""
        query = [("query", self.query)] if self.query is not None else []
        return [*query, ("target", self.target), *((f"negatives.{m}", side) for m, side in enumerate(self.negatives))]


class ShardEntry(StrictModel):
    """``name`` is a plain file name, so that no index leads outside of its own directory."""

    name: Annotated[str, StringConstraints(pattern=re.compile(r"^[A-Za-z0-9_-]+\.tar\Z"))]
    samples: int = Field(ge=0, lt=1 << 63)
    bytes: int = Field(ge=0, lt=1 << 63)
    sha256: Annotated[str, StringConstraints(pattern=re.compile(r"^[0-9a-f]{64}\Z"))]

    @property
    def offsets_name(self) -> str:
        return self.name.removesuffix(".tar") + ".idx.npy"

    @property
    def stats_name(self) -> str:
        return self.name.removesuffix(".tar") + "_stats.json"


class ShardIndex(StrictModel):
    """The content of ``index.json``. ``targets_only``: samples without a query, which serve evaluation alone."""

    version: Literal[1] = 1
    shards: Annotated[list[ShardEntry], _ONE_MISTAKE]
    samples: int
    targets_only: int = 0
    fingerprint: str

    @model_validator(mode="after")
    def check_totals(self):
        if len({entry.name for entry in self.shards}) != len(self.shards):
            raise ValueError("a shard is listed twice")
        if self.samples != sum(entry.samples for entry in self.shards):
            raise ValueError("'samples' is not the sum over the shards")
        if self.fingerprint != fingerprint(self.shards):
            raise ValueError("'fingerprint' does not fit the shards that are listed")
        return self


def fingerprint(shards: list[ShardEntry]) -> str:
    """SHA-256 over the shards' names, sample counts and checksums."""
    text = "".join(f"{entry.name} {entry.samples} {entry.sha256}\n" for entry in shards)
    return hashlib.sha256(text.encode()).hexdigest()


def content_identity(text: str, images: list[bytes]) -> str:
    """The identity of a target that was given none: a hash of its text and its images' bytes, with their lengths."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (text.encode(), *images):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def identity_number(target_id: str) -> int:
    """A target's identity as a signed 64-bit number; two of n identities collide with probability below n^2 / 2^65."""
    return int.from_bytes(hashlib.blake2b(target_id.encode(), digest_size=8).digest(), "little", signed=True)


_NESTED = {"query": Side, "target": Side, "negatives": Negative}
_SHOWN_CHARACTERS = 80
_OUTERMOST = {model.__name__: model for model in (Record, Side, ShardIndex)}


def json_problem(message: str) -> str:
    """The part of a sentence for a line that the JSON parser refuses with ``message``."""
    cure = "; each record must be one whole line" if "EOF" in message else ""
    return f"it is not valid JSON ({message.replace('at line 1 column', 'at column')}){cure}"


def explain(error: ValidationError) -> str:
    """The first mistake of a failed validation as the part of a sentence that names the key and perhaps the cure."""
    items = error.errors(include_url=False)
    # A misspelt key also makes the right one missing: the misspelling is what helps.
    item = next((candidate for candidate in items if candidate["type"] == "extra_forbidden"), items[0])
    key = shortened(".".join(str(part) for part in item["loc"]), _SHOWN_CHARACTERS)
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "json_invalid":
        return json_problem(message.removeprefix("Invalid JSON: "))
    if item["type"] == "extra_forbidden":
        holder = _OUTERMOST.get(error.title) if len(item["loc"]) == 1 else _NESTED.get(str(item["loc"][0]))
        close = nearest(str(item["loc"][-1]), holder.model_fields) if holder else None
        return f"unknown key '{key}'" + (f"; did you mean '{close}'?" if close else "")
    if item["type"] == "missing":
        return f"the key '{key}' is missing"
    if item["type"] == "value_error":
        return f"in '{key}', {message}" if key else message
    value = shortened(repr(item["input"]), _SHOWN_CHARACTERS)
    if item["loc"] == ("key",) and item["type"] == "string_pattern_mismatch":
        return f"'key' is {value}: a key is 1 to 64 letters, digits, '_' and '-', without dots and slashes"
    return f"'{key}' is {value}: {message}" if key else f"it is {value}: {message}"
