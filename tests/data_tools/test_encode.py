import io

import numpy as np
import pytest
from PIL import Image
from tiny_shards import picture

from data_tools.build.settings import Encoding
from pdfx.errors import UserError
from pdfx.model.pictures import ImageError, decode_image


def encode(data: bytes, extension: str, **settings):
    return Encoding(**settings).encode(decode_image(data), extension)


def test_without_settings_pictures_stay_as_they_are_given():
    assert encode(picture(0), "png") is None


def test_a_picture_that_is_small_enough_stays_as_it_is_given():
    assert encode(picture(0, 12, 10), "png", resize=12) is None


@pytest.mark.parametrize("width, height, size", [(100, 50, (20, 10)), (50, 100, (10, 20)), (1000, 3, (20, 1))])
def test_the_longer_side_is_shrunk_and_the_shape_kept(width, height, size):
    data, extension, told = encode(picture(0, width, height), "png", resize=20)
    assert (Image.open(io.BytesIO(data)).size, extension, told) == (size, "png", size)


@pytest.mark.parametrize(
    "given, kept", [("jpg", "jpg"), ("webp", "webp"), ("png", "png"), ("gif", "png"), ("bmp", "png"), ("tif", "png")]
)
def test_shrunk_pictures_keep_their_format_where_it_is_one_to_write(given, kept):
    data, extension, _ = encode(picture(0, 30, 30), given, resize=10)
    assert extension == kept
    assert Image.open(io.BytesIO(data)).format == {"jpg": "JPEG", "webp": "WEBP", "png": "PNG"}[kept]


@pytest.mark.parametrize("name, extension", [("jpeg", "jpg"), ("webp", "webp"), ("png", "png")])
def test_a_format_is_that_of_every_picture_and_its_pixels_are_close(name, extension):
    smooth = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(smooth).save(stream, "PNG")
    data, found, _ = encode(stream.getvalue(), "png", format=name, quality=95)
    assert found == extension
    difference = np.abs(np.asarray(decode_image(data)).astype(int) - smooth).mean()
    assert difference == 0 if name == "png" else difference < 3


def test_a_lower_quality_takes_fewer_bytes():
    assert len(encode(picture(0, 60, 60), "png", format="jpeg", quality=20)[0]) < len(
        encode(picture(0, 60, 60), "png", format="jpeg", quality=90)[0]
    )


@pytest.mark.parametrize("name", ["jpeg", "webp", "png"])
def test_what_is_encoded_anew_is_upright_and_bears_no_metadata(name):
    image = Image.new("RGB", (40, 20), "blue")
    image.paste("red", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "somebody's name"
    stream = io.BytesIO()
    image.save(stream, "JPEG", exif=exif, icc_profile=b"profile", comment=b"secret", quality=95)
    data, _, size = encode(stream.getvalue(), "jpg", format=name)
    again = Image.open(io.BytesIO(data))
    assert size == again.size == (20, 40)
    assert not again.getexif() and not {"icc_profile", "comment", "exif"} & again.info.keys()
    red, _, blue = again.convert("RGB").getpixel((10, 5))
    assert red > 200 and blue < 60


def test_the_same_picture_gives_the_same_bytes():
    assert encode(picture(0, 60, 60), "png", resize=30, format="webp") == encode(
        picture(0, 60, 60), "png", resize=30, format="webp"
    )


def test_a_picture_that_a_format_cannot_hold_is_refused():
    with pytest.raises(ImageError, match="20000 x 1 pixels cannot be stored as webp"):
        encode(picture(0, 20000, 1), "png", format="webp")


@pytest.mark.parametrize(
    "settings, sentence",
    [({"resize": 0}, "resize is 0"), ({"format": "gif"}, "'gif' and must be one of"), ({"quality": 0}, "quality")],
)
def test_settings_out_of_range_are_named(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        Encoding(**settings)
