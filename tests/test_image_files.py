"""Picture files: what is read right, and what is refused in time, in memory and without help of other programs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from support.bounded import bounded
from support.damaged import PICTURES, damaged, good

from musev_core.errors import MuseVError
from musev_core.frames.image_files import _as_rgb, load_image, load_images, save_image


def noise(n, h, w, seed=0):
    return torch.randint(0, 256, (n, h, w, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg"])
def test_saved_images_come_back(tmp_path, suffix):
    image = torch.full((1, 16, 24, 3), 128, dtype=torch.uint8) if suffix == ".jpg" else noise(1, 16, 24)
    save_image(tmp_path / f"a{suffix}", image)
    save_image(tmp_path / f"b{suffix}", image / 255)
    for picture in load_images([tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"]):
        assert picture.dtype == torch.uint8 and torch.equal(picture, image)


def test_an_image_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(MuseVError, match="taken.png' cannot be written: "):
        save_image(tmp_path / "taken.png", noise(1, 16, 24))


def test_transparency_is_laid_on_white(tmp_path):
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:4] = (255, 0, 0, 255)
    pixels[4:, :, 3] = 128  # half transparent black
    pixels[4:, 4:, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png")[0]
    assert image[0, 0].tolist() == [255, 0, 0]
    assert image[7, 0].tolist() == [127, 127, 127]
    assert image[7, 7].tolist() == [255, 255, 255]
    Image.fromarray(pixels).quantize(4).save(tmp_path / "p.png", transparency=0)
    assert (load_image(tmp_path / "p.png") == 255).all(dim=-1).any()


def test_orientation_tag_is_applied(tmp_path):
    picture = Image.new("RGB", (16, 8))
    picture.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate 90 degrees clockwise to view
    picture.save(tmp_path / "a.png", exif=exif)
    image = load_image(tmp_path / "a.png")
    assert image.shape == (1, 16, 8, 3) and image[0, 0, 7].tolist() == [255, 255, 255]


def test_grey_palette_and_16_bit_files_keep_their_brightness(tmp_path):
    ramp = np.tile(np.linspace(0, 255, 16).round().astype(np.uint8), (16, 1))
    Image.fromarray(ramp).save(tmp_path / "grey.png")
    Image.fromarray(ramp).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(ramp.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    for name in ("grey", "palette", "deep"):
        assert np.array_equal(load_image(tmp_path / f"{name}.png")[0, :, :, 1], ramp), name


def test_broken_image_files_are_named(tmp_path):
    (tmp_path / "text.png").write_text("hello", encoding="utf-8")
    save_image(tmp_path / "good.png", noise(1, 64, 64))
    (tmp_path / "half.png").write_bytes((tmp_path / "good.png").read_bytes()[:3000])
    Image.new("RGB", (20, 4)).save(tmp_path / "tiny.png")
    Image.new("F", (20, 20)).save(tmp_path / "float.tiff")
    for name, message in [
        ("absent.png", "The image file .* does not exist"),
        (".", "is a folder; the name of one image file was expected"),
        ("text.png", "cannot be read as an image"),
        ("half.png", "cannot be read as an image"),
        ("tiny.png", "only 4 x 20 pixels"),
        ("float.tiff", "floating-point values"),
    ]:
        with pytest.raises(MuseVError, match=message) as caught:
            load_image(tmp_path / name)
        assert Path(name).name in str(caught.value)


# ---- whatever comes in ---------------------------------------------------------------------------------------------


def read(path: Path, data: bytes):
    """The picture, or the sentence, within bounds."""
    path.write_bytes(data)
    return bounded(lambda: load_image(path), size=len(data))


@pytest.mark.parametrize("kind", PICTURES)
def test_every_kind_is_read(tmp_path, kind):
    picture = read(tmp_path / "picture", good(kind))
    if kind == "tiff_float":
        assert "floating-point" in str(picture)
    else:
        assert isinstance(picture, torch.Tensor) and picture.dtype == torch.uint8 and picture.shape[3] == 3


@given(st.sampled_from(PICTURES), st.randoms(use_true_random=False))
def test_damaged_pictures_are_read_or_told(tmp_path_factory, kind, draw):
    read(tmp_path_factory.mktemp("damaged") / "picture", damaged(kind, draw))


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff"])
def test_orientation_is_applied_whatever_else_the_metadata_says(tmp_path, kind):
    picture = read(tmp_path / "picture", good(kind))
    assert picture.shape[1:3] == ((24, 40) if kind == "tiff" else (40, 24))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_that_of_pillow(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(noise(1, 8, 16)[0].numpy())
    picture.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(load_image(tmp_path / "a.png")[0], expected)


MODES = (
    *("1", "L", "P", "LA", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV", "I"),
    *("I;16", "I;16B"),
)


@pytest.mark.parametrize("mode", MODES)
@given(size=st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_every_mode_and_size_becomes_rgb(mode, size):
    picture = _as_rgb(Image.new(mode, size))
    assert picture.mode == "RGB" and picture.size == size


def test_sixteen_bits_are_rounded_to_the_nearest(tmp_path):
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.array_equal(load_image(tmp_path / "deep.png")[0, :, :, 0], np.round(deep / 257).astype(np.uint8))
