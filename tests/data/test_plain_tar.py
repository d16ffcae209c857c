"""The short way to read a sample's tar gives what the standard library gives, or leaves it to the standard library."""

import io
import random
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdfx.data.samples import plain_members


def tar(members: list[tuple[str, bytes]], kind: int = tarfile.USTAR_FORMAT) -> bytes:
    """A tar without the empty blocks at its end, as a sample stands in a shard."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        end = archive.offset
    return stream.getvalue()[:end]


def by_the_library(data: bytes) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        return [(member.name, archive.extractfile(member).read()) for member in archive]


NAMES = st.text("abcxyz019_-.äß", min_size=1, max_size=40).filter(lambda name: name.strip("./"))


@given(
    st.lists(st.tuples(NAMES, st.binary(max_size=1500)), min_size=1, max_size=5),
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT]),
)
def test_plain_files_are_read_as_the_standard_library_reads_them(members, kind):
    data = tar(members, kind)
    assert plain_members(data) == by_the_library(data) == members


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("n" * 130, tarfile.GNU_FORMAT),
        ("n" * 60 + "/" + "n" * 60, tarfile.USTAR_FORMAT),
        ("ä" * 90, tarfile.PAX_FORMAT),
    ],
)
def test_long_names_are_left_to_the_standard_library(name, kind):
    data = tar([("a.json", b"{}"), (name, b"1")], kind)
    assert by_the_library(data)[1][0] == name
    assert plain_members(data) is None


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE],
)
def test_what_is_no_plain_file_is_left_to_the_standard_library(kind):
    member = tarfile.TarInfo("a.json")
    member.type, member.linkname = kind, "b"
    assert plain_members(member.tobuf(tarfile.GNU_FORMAT)) is None


def test_no_damaged_header_is_taken_for_a_sound_one():
    data = tar([("key.json", b"{}" * 300), ("key.query.0.png", bytes(range(256)) * 3)])
    starts = [0, 512 + 1024]
    draw = random.Random(0)
    for start in starts:
        for place in range(start, start + 512):
            broken = bytearray(data)
            broken[place] ^= draw.randint(1, 255)
            found = plain_members(bytes(broken))
            # Unused bytes of a header may be anything that the checksum covers, so a change is found wherever it is; a
            # written checksum may end in either of two signs.
            assert found is None or (148 <= place - start < 156 and found == plain_members(data))


@pytest.mark.parametrize("length", [1, 511, 513, 1024, 1536, 2047])
def test_a_cut_tar_is_left_to_the_standard_library(length):
    data = tar([("key.json", b"{}" * 300), ("key.query.0.png", b"1" * 700)])
    assert plain_members(data[:length]) is None or plain_members(data[:length]) == by_the_library(data)[:1]
