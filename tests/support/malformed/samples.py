"""Samples as they stand in a tar: odd ones that must be read, and damaged ones that must be refused, with the
reason."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from .pictures import encode, quarters

Members = list[tuple[tarfile.TarInfo, bytes]]
PICTURE = encode(quarters(), "PNG")


@dataclass(frozen=True)
class TarSample:
    """One sample's bytes, and what must come of them.

    Attributes:
        key: the key that it was written with.
        text: the query's text where the sample must be read.
        kind: one of ``pdfx.data.samples.KINDS`` where it must be refused; None if it must be read.
        reason: a regular expression that the reason must hold.
    """

    key: str
    data: bytes
    text: str | None = None
    kind: str | None = None
    reason: str = ""


def member(name: str, data: bytes, **attributes) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    return info, data


def pack(members: Members, layout: int = tarfile.USTAR_FORMAT) -> bytes:
    """The members as they stand in a tar, without the end of the tar."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=layout) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
        stop = archive.offset
    return stream.getvalue()[:stop]


def record(**changes) -> dict:
    """A sound record of a shard with changes; a key whose value is ... is left out."""
    values = {"query": {"text": "q", "images": ["query.0.png"]}, "target": {"text": "t"}, "target_id": "t", **changes}
    return {key: value for key, value in values.items() if value is not ...}


def sound_members(key: str, /, **changes) -> Members:
    return [member(f"{key}.json", json.dumps(record(**changes)).encode()), member(f"{key}.query.0.png", PICTURE)]


def odd_samples() -> Iterator[TarSample]:
    """Samples that must be read."""
    texts = {
        "plain": "q",
        "chinese": "一只猫",
        "right-to-left": "\u05d7\u05ea\u05d5\u05dc",
        "emoji": "\U0001f408\u200d\u2b1b",
        "zero-byte": "a\0b",
        "steering-signs": "\x1b[2J\x07\r\n",
        "long": "long " * 20000,
        "html": "<script>alert(1)</script>",
        "spaces": "   ",
        "combining": "Z\u0300\u0301\u0302\u0303" * 50,
        "special-token": "<|image_pad|><|vision_start|></s>",
    }
    for name, text in texts.items():
        yield TarSample(
            f"text-{name}", pack(sound_members(f"text-{name}", query={"text": text, "images": ["query.0.png"]})), text
        )
    layouts: dict[str, Callable[[str], bytes]] = {
        "record-last": lambda key: pack(sound_members(key)[::-1]),
        "extra-member": lambda key: pack([*sound_members(key), member(f"{key}.txt", b"more")]),
        "empty-extra-member": lambda key: pack([*sound_members(key), member(f"{key}.empty", b"")]),
        "pax-headers": lambda key: pack(
            [member(info.name, data, pax_headers={"comment": "c" * 999}) for info, data in sound_members(key)],
            tarfile.PAX_FORMAT,
        ),
        "gnu-format": lambda key: pack(sound_members(key), tarfile.GNU_FORMAT),
        "no-rights": lambda key: pack(
            [member(info.name, data, mode=0, uid=12345) for info, data in sound_members(key)]
        ),
        "indented-record": lambda key: pack(
            [member(f"{key}.json", json.dumps(record(), indent=8).encode()), *sound_members(key)[1:]]
        ),
        "repeated-json-key": lambda key: pack(
            [member(f"{key}.json", b'{"target_id": "x",' + json.dumps(record()).encode()[1:]), *sound_members(key)[1:]]
        ),
        "same-picture-twice": lambda key: pack(sound_members(key, query={"text": "q", "images": ["query.0.png"] * 2})),
        "many-negatives": lambda key: pack(sound_members(key, negatives=[{"text": "n", "target_id": "n"}] * 500)),
        "key-of-64-letters": lambda key: pack(sound_members(key.ljust(64, "x"))),
    }
    for name, make in layouts.items():
        key = f"layout-{name}"
        yield TarSample(key.ljust(64, "x") if name == "key-of-64-letters" else key, make(key), "q")


def damaged_samples() -> Iterator[TarSample]:
    """Samples that must be refused."""
    for make in (_broken_json, _wrong_records, _wrong_pictures, _wrong_members, _wrong_tars, _overwritten):
        yield from make()


def _broken_json() -> Iterator[TarSample]:
    good = json.dumps(record()).encode()
    contents = {
        "empty": b"",
        "blank": b"  \n",
        "open-brace": b"{",
        "comma-behind": good[:-1] + b",}",
        "single-quotes": good.replace(b'"', b"'"),
        "nan": good.replace(b'"q"', b"NaN"),
        "byte-order-mark": b"\xef\xbb\xbf" + good,
        "zero-byte-behind": good + b"\0",
        "second-document": good + good,
        "comment": b"// record\n" + good,
        "not-utf-8": good.replace(b'"q"', b'"\xff\xfe"'),
        "utf-16": json.dumps(record()).encode("utf-16"),
        "html": b"<!DOCTYPE html><html></html>",
        "yaml": b"query:\n  text: q\n",
        "deep": b"[" * 100_000,
        "array": b"[" + good + b"]",
        "null": b"null",
        "number": b"12",
        "string": b'"q"',
        "half-a-surrogate": good.replace(b'"q"', b'"\\ud83d"'),
        "unknown-escape": good.replace(b'"q"', b'"\\x41"'),
        "line-break-in-a-text": good.replace(b'"q"', b'"a\nb"'),
    }
    contents |= {f"first-{length}-bytes": good[:length] for length in range(10, len(good), 15)}
    for name, content in contents.items():
        key = f"json-{name}"
        yield TarSample(
            key,
            pack([member(f"{key}.json", content), *sound_members(key)[1:]]),
            kind="damaged",
            reason="in its record, ",
        )


def _wrong_records() -> Iterator[TarSample]:
    changes = {
        "unknown-key": ({"querry": {"text": "q"}}, "did you mean 'query'"),
        "no-target": ({"target": ...}, "'target' is missing"),
        "target-null": ({"target": None}, "'target' is None"),
        "target-text-alone": ({"target": "t"}, "'target' is 't'"),
        "target-empty": ({"target": {"text": "", "images": []}}, "neither a text nor an image"),
        "query-empty": ({"query": {}}, "neither a text nor an image"),
        "query-absent": ({"query": ...}, "it has no query, though index.json says that all samples have one"),
        "query-list": ({"query": ["q"]}, "'query' is"),
        "text-number": ({"query": {"text": 5}}, "'query.text' is 5"),
        "text-null": ({"query": {"text": None, "images": ["query.0.png"]}}, "'query.text' is None"),
        "text-list": ({"query": {"text": ["q"]}}, "'query.text' is"),
        "images-text": ({"query": {"images": "query.0.png"}}, "'query.images' is"),
        "images-null": ({"query": {"text": "q", "images": None}}, "'query.images' is None"),
        "images-numbers": ({"query": {"images": [0]}}, "'query.images.0' is 0"),
        "side-unknown-key": (
            {"query": {"text": "q", "image": "query.0.png"}},
            "unknown key 'query.image'; did you mean 'images'",
        ),
        "negatives-object": ({"negatives": {"text": "n"}}, "'negatives' is"),
        "negatives-texts": ({"negatives": ["n"]}, "'negatives.0' is 'n'"),
        "negative-empty": ({"negatives": [{"target_id": "n"}]}, "neither a text nor an image"),
        "negative-without-identity": ({"negatives": [{"text": "n"}]}, "'target_id' is missing"),
        "identity-absent": ({"target_id": ...}, "'target_id' is missing"),
        "identity-null": ({"target_id": None}, "'target_id' is missing"),
        "identity-empty": ({"target_id": ""}, "'target_id' is ''"),
        "identity-number": ({"target_id": 7}, "'target_id' is 7"),
        "key-with-a-slash": ({"key": "a/b"}, "'key' is 'a/b'"),
        "key-with-a-dot": ({"key": "a.b"}, "'key' is 'a.b'"),
        "key-number": ({"key": 5}, "'key' is 5"),
        "key-too-long": ({"key": "k" * 65}, "'key' is"),
        "candidates-text": ({"candidates": "t"}, "'candidates' is 't'"),
        "candidate-number": ({"candidates": [1]}, "'candidates.0' is 1"),
    }
    for name, (change, reason) in changes.items():
        key = f"record-{name}"
        yield TarSample(key, pack(sound_members(key, **change)), kind="damaged", reason=reason)


def _wrong_pictures() -> Iterator[TarSample]:
    for number, name in enumerate(
        ("query.1.png", "query.0.PNG", "../query.0.png", "/etc/passwd", "", "query.0.png\x1b[2J", "p" * 5000)
    ):
        key = f"picture-absent-{number}"
        data = pack(sound_members(key, query={"text": "q", "images": [name]}))
        yield TarSample(key, data, kind="picture", reason=r"the image '[^\x1b]{0,84}' is missing")
    key = "picture-is-the-record"
    yield TarSample(
        key,
        pack(sound_members(key, target={"images": ["json"]})),
        kind="picture",
        reason="they look like a JSON document",
    )
    key = "picture-of-a-negative"
    members = [
        *sound_members(key, negatives=[{"images": ["negatives.0.0.png"], "target_id": "n"}]),
        member(f"{key}.negatives.0.0.png", PICTURE[:60]),
    ]
    yield TarSample(
        key, pack(members), kind="picture", reason="the image 'negatives.0.0.png' cannot be used: .*truncated"
    )


def _wrong_members() -> Iterator[TarSample]:
    json_member, picture_member = sound_members("KEY")
    kinds = {
        "folder": tarfile.DIRTYPE,
        "link": tarfile.SYMTYPE,
        "hard-link": tarfile.LNKTYPE,
        "pipe": tarfile.FIFOTYPE,
        "device": tarfile.CHRTYPE,
    }
    sets: dict[str, tuple[Callable[[str], Members], str]] = {
        "no-record": (lambda key: sound_members(key)[1:], "'.json' among them"),
        "record-of-another-key": (
            lambda key: [sound_members("other")[0], *sound_members(key)[1:]],
            "members of one key",
        ),
        "picture-of-another-key": (
            lambda key: [sound_members(key)[0], *sound_members("other")[1:]],
            "members of one key",
        ),
        "two-samples": (lambda key: [*sound_members(key), *sound_members("other")], "there twice"),
        "two-records": (lambda key: [sound_members(key)[0], *sound_members(key)], "there twice"),
        "two-pictures-of-one-name": (lambda key: [*sound_members(key), sound_members(key)[1]], "there twice"),
        "path-upwards": (
            lambda key: [member(f"../{info.name}", data) for info, data in sound_members(key)],
            "members of one key|its key is",
        ),
        "absolute-path": (
            lambda key: [member(f"/tmp/{info.name}", data) for info, data in sound_members(key)],
            "its key is '/tmp/",
        ),
        "key-in-a-folder": (
            lambda key: [member(f"a/{info.name}", data) for info, data in sound_members(key)],
            "its key is 'a/",
        ),
        "key-with-a-space": (
            lambda key: [member(f"a {info.name}", data) for info, data in sound_members(key)],
            "its key is 'a ",
        ),
        "key-with-steering-signs": (
            lambda key: [member(f"\x1b[2J{info.name}", data) for info, data in sound_members(key)],
            r"its key is '\\x1b",
        ),
        "key-with-a-line-break": (
            lambda key: [member(f"a\n{info.name}", data) for info, data in sound_members(key)],
            r"its key is 'a\\n",
        ),
        "key-empty": (
            lambda key: [member(info.name.removeprefix(key), data) for info, data in sound_members(key)],
            "its key is ''",
        ),
        "key-in-chinese": (
            lambda key: [member(f"猫{info.name}", data) for info, data in sound_members(key)],
            r"its key is '\\u732b",
        ),
        "key-of-65-letters": (
            lambda key: [member(info.name.replace(key, "x" * 65), data) for info, data in sound_members(key)],
            "its key is 'xxx",
        ),
        "sparse": (partial(_sparse), "is not a plain file"),
    }
    sets |= {f"a-{name}": (partial(_with_kind, kind), "is not a plain file") for name, kind in kinds.items()}
    for name, (make, reason) in sets.items():
        key = f"members-{name}"
        layout = tarfile.PAX_FORMAT if name in ("sparse", "key-in-chinese") else tarfile.USTAR_FORMAT
        yield TarSample(key, pack(make(key), layout), kind="damaged", reason=reason)


def _with_kind(kind: bytes, key: str) -> Members:
    return [sound_members(key)[0], member(f"{key}.query.0.png", b"", type=kind, linkname="/etc/passwd")]


def _sparse(key: str) -> Members:
    """A member of a few bytes that claims a gigabyte of zeros."""
    headers = {"GNU.sparse.major": "0", "GNU.sparse.size": str(2**30), "GNU.sparse.map": "0,4"}
    return [sound_members(key)[0], member(f"{key}.query.0.png", b"data", pax_headers=headers)]


def _wrong_tars() -> Iterator[TarSample]:
    def header(key: str, **fields: bytes) -> bytes:
        """A sound sample whose first header has other bytes in some fields, with a fitting checksum."""
        places = {"size": 124, "checksum": 148, "type": 156, "magic": 257}
        block = bytearray(pack(sound_members(key)))
        for name, value in fields.items():
            block[places[name] : places[name] + len(value)] = value
        if "checksum" not in fields:
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block[:512])
        return bytes(block)

    def long_names(key: str, count: int) -> bytes:
        name = member("././@LongLink", b"n" * 600, type=tarfile.GNUTYPE_LONGNAME)
        return pack([name] * count, tarfile.GNU_FORMAT) + pack(sound_members(key))

    tars: dict[str, Callable[[str], bytes]] = {
        "checksum": lambda key: header(key, checksum=b"000000\0 "),
        "size-no-number": lambda key: header(key, size=b"zzzzzzzzzzz\0"),
        "size-too-large": lambda key: header(key, size=b"77777777777\0"),
        "size-negative": lambda key: header(key, size=b"\xff" * 10 + b"\xfe\x00"),
        "size-of-2-to-the-80": lambda key: header(key, size=b"\x80" + b"\x01" + b"\0" * 10),
        "type-unknown": lambda key: header(key, type=b"D"),
        "long-name-of-negative-size": lambda key: header(key, type=b"L", size=b"\xff" * 10 + b"\xfe\x00"),
        "pax-of-gigabytes": lambda key: header(key, type=b"x", size=b"77777777777\0"),
        "pax-of-nonsense": lambda key: header(key, type=b"x"),
        "long-names-without-end": lambda key: long_names(key, 3000),
        "long-name-alone": lambda key: long_names(key, 1)[:1536],
        "zip": lambda key: b"PK\x03\x04" + bytes(508),
        "gzip": lambda key: b"\x1f\x8b\x08" + bytes(509),
        "html": lambda key: b"<!DOCTYPE html>".ljust(512, b" "),
        "one-block-of-zeros": lambda key: bytes(512),
        "picture-without-a-tar": lambda key: PICTURE.ljust(1024, b"\0"),
    }
    tars |= {
        f"cut-at-{length}": partial(lambda length, key: pack(sound_members(key))[:length], length)
        for length in (1, 100, 511, 512, 600, 1536, 1600)
    }
    for name, make in tars.items():
        key = f"tar-{name}"
        yield TarSample(key, make(key), kind="damaged", reason="not a sound tar|is not a plain file|'.json' among them")


def _overwritten() -> Iterator[TarSample]:
    """Bytes that change after the shards were built: the sizes stay."""
    for filler, value in (
        ("zeros", bytes(4096)),
        ("ones", b"\xff" * 4096),
        ("noise", np.random.default_rng(0).bytes(4096)),
        ("text", b"<html>" * 700),
    ):
        for part, start, length in (
            ("all", 0, 4096),
            ("first-header", 0, 512),
            ("record", 512, 60),
            ("second-header", 1024, 512),
            ("picture", 1536, 60),
        ):
            key = f"overwritten-{part}-with-{filler}"
            data = pack(sound_members(key))
            stop = min(start + length, len(data))
            data = data[:start] + value[: stop - start] + data[stop:]
            reason = {"record": "not valid JSON", "picture": "the image 'query.0.png' cannot be used"}.get(
                part, "not a sound tar"
            )
            yield TarSample(key, data, kind="picture" if part == "picture" else "damaged", reason=reason)
