import io
import os
import tarfile

import pytest
from tiny_shards import picture

from pdfx.data.picture_folder import PictureError, PictureFolder


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images" / "sub").mkdir(parents=True)
    (tmp_path / "images" / "a.png").write_bytes(picture(0))
    (tmp_path / "secret.png").write_bytes(picture(1))
    (tmp_path / "images-two").mkdir()
    (tmp_path / "images-two" / "a.png").write_bytes(picture(2))
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    return PictureFolder(tmp_path / "images")


def write_tar(path, members: dict[str, bytes | str], mode: str = "w") -> None:
    """Plain files, and links where the content is a string."""
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(
    "name", ["../secret.png", "sub/../../secret.png", "/etc/hostname", "../images-two/a.png", "", ".", "a.png\0"]
)
def test_a_path_that_leaves_the_folder_is_refused(folder, name):
    with pytest.raises(PictureError, match="the image path .* leaves the image folder") as caught:
        folder.read(name)
    assert caught.value.kind == "image path"


@pytest.mark.parametrize("name", ["a.png", "sub/../a.png", "./a.png"])
def test_a_path_that_stays_in_the_folder_is_read(folder, name):
    assert folder.read(name) == picture(0)


def test_links_that_the_folder_holds_are_followed(folder):
    assert folder.read("link.png") == picture(1)


@pytest.mark.parametrize("name", ["b.png", "sub", "a.png/b.png", "sub/" + "x" * 300, "\ud800.png"])
def test_a_missing_image_names_its_path(folder, name):
    with pytest.raises(PictureError, match="there is no image .*/images/") as caught:
        folder.read(name)
    assert caught.value.kind == "missing image"


@pytest.mark.parametrize("name", ["../secret.png", "b.png", "all.tar/b.png"])
def test_what_is_missing_is_told_alike_without_reading(folder, name):
    write_tar(folder.root / "all.tar", {"a.png": picture(3)})
    folder.require("a.png")
    folder.require("all.tar/a.png")
    with pytest.raises(PictureError) as of_read:
        folder.read(name)
    with pytest.raises(PictureError) as of_require:
        folder.require(name)
    assert (str(of_require.value), of_require.value.kind) == (str(of_read.value), of_read.value.kind)


def test_without_a_folder_every_image_is_missing():
    with pytest.raises(PictureError, match="no image folder is given, and so no image 'a.png'"):
        PictureFolder(None).read("a.png")


def test_what_is_no_plain_file_is_not_opened(folder):
    os.mkfifo(folder.root / "pipe.png")
    with pytest.raises(PictureError, match="there is no image"):
        folder.read("pipe.png")


def test_a_file_too_large_for_any_allowed_picture_is_not_read(folder):
    with (folder.root / "huge.png").open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(PictureError, match=f"has {1 << 40} bytes, more than the") as caught:
        folder.read("huge.png")
    assert caught.value.kind == "oversized image"


@pytest.mark.parametrize("name", ["all.tar/cats/1.png", "sub/all.tar/cats/1.png", "all.tar/./cats/../cats/1.png"])
def test_members_of_tars_below_the_folder_are_read(folder, name):
    for place in ("all.tar", "sub/all.tar"):
        write_tar(folder.root / place, {"./cats/1.png": picture(3), "cats/2.png": picture(4)})
    assert folder.read(name) == picture(3)


def test_a_tar_may_stand_for_the_folder(tmp_path):
    write_tar(tmp_path / "all.tar", {"cats/1.png": picture(3)})
    assert PictureFolder(tmp_path / "all.tar").read("cats/1.png") == picture(3)


def test_only_plain_members_are_read_and_links_lead_nowhere(folder):
    write_tar(folder.root / "all.tar", {"link.png": "/etc/hostname", "up.png": "../secret.png", "../a.png": picture(0)})
    for name in ("link.png", "up.png"):
        with pytest.raises(PictureError, match=f"there is no image {name} in .*all.tar"):
            folder.read(f"all.tar/{name}")
    with pytest.raises(PictureError, match="leaves the image folder"):
        folder.read("all.tar/../../secret.png")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE])
def test_a_size_that_a_tar_merely_claims_is_not_believed(folder, kind):
    header = tarfile.TarInfo("a.png")
    header.type, header.size = kind, 1 << 62
    (folder.root / "all.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(PictureError, match="all.tar"):
        folder.read("all.tar/a.png")


@pytest.mark.parametrize("damage", ["compressed", "cut", "none"])
def test_a_tar_that_cannot_be_read_is_named(folder, damage):
    path = folder.root / "all.tar"
    write_tar(path, {"1.png": picture(0), "2.png": picture(1, 100, 100)}, "w:gz" if damage == "compressed" else "w")
    if damage == "cut":
        os.truncate(path, 4000)
    elif damage == "none":
        path.write_bytes(b"no tar" * 1000)
    with pytest.raises(PictureError, match="all.tar") as caught:
        folder.read("all.tar/2.png")
    assert caught.value.kind in ("unreadable image", "missing image")


def test_a_folder_whose_name_ends_like_a_tars_is_a_folder(folder):
    (folder.root / "odd.tar").mkdir()
    (folder.root / "odd.tar" / "a.png").write_bytes(picture(5))
    assert folder.read("odd.tar/a.png") == picture(5)
