"""Pictures as data sets have them: real PNG, JPEG and other files, made here, handled or refused by name."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from t2eval.errors import T2Error
from t2eval.vision.decoding import MAX_SIDE, MIN_SIDE, Place, read

PLACE = Place("owner/pictures", "validation", 7)
RED, BLUE = (200, 30, 30), (30, 30, 200)


def _halves(size: tuple[int, int] = (80, 60), mode: str = "RGB") -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image.convert(mode)


def _file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _near(image: Image.Image, xy: tuple[int, int], colour: tuple[int, int, int], tolerance: int = 25) -> bool:
    found: Any = image.getpixel(xy)
    return all(abs(one - other) <= tolerance for one, other in zip(found, colour, strict=True))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_kinds_of_files(kind: str) -> None:
    image = read(_file(_halves(), kind), PLACE)
    assert (image.mode, image.size) == ("RGB", (80, 60))
    assert _near(image, (10, 30), RED) and _near(image, (70, 30), BLUE)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_has_its_colours(kind: str) -> None:
    image = read(_file(_halves(mode="CMYK"), kind), PLACE)
    assert image.mode == "RGB"
    assert _near(image, (10, 30), RED) and _near(image, (70, 30), BLUE)


@pytest.mark.parametrize(("mode", "kind"), [("L", "PNG"), ("L", "JPEG"), ("1", "PNG")])
def test_grey_and_black_and_white(mode: str, kind: str) -> None:
    image = read(_file(Image.new("L", (50, 50), 255).convert(mode), kind), PLACE)
    assert image.mode == "RGB"
    assert _near(image, (25, 25), (255, 255, 255))


def test_a_palette_and_its_transparent_colour() -> None:
    assert _near(read(_file(_halves().quantize(4)), PLACE), (10, 30), RED)
    see_through = _halves().quantize(4)
    red = see_through.getpixel((10, 30))
    image = read(_file(see_through, transparency=red), PLACE)
    assert _near(image, (10, 30), (255, 255, 255)) and _near(image, (70, 30), BLUE)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(mode: str) -> None:
    clear = Image.new("RGBA", (40, 40), (0, 0, 0, 0)).convert(mode)
    assert _near(read(_file(clear), PLACE), (20, 20), (255, 255, 255))
    half = Image.new("RGBA", (40, 40), (0, 0, 0, 128)).convert(mode)
    assert _near(read(_file(half), PLACE), (20, 20), (127, 127, 127))


@pytest.mark.parametrize(
    ("orientation", "size", "red_at"), [(1, (80, 60), (5, 30)), (3, (80, 60), (75, 30)), (6, (60, 80), (30, 5)), (8, (60, 80), (30, 75))]
)
def test_exif_rotation_is_applied(orientation: int, size: tuple[int, int], red_at: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = read(_file(_halves(), "JPEG", exif=exif), PLACE)
    assert image.size == size
    assert _near(image, red_at, RED)
    assert image.getexif().get(0x0112, 1) == 1


def test_sixteen_bits_are_scaled_not_cut() -> None:
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).repeat(64).reshape(64, 64)
    image = read(_file(Image.fromarray(ramp)), PLACE)
    assert image.mode == "RGB"
    assert _near(image, (5, 0), (0, 0, 0), 2) and _near(image, (5, 32), (130, 130, 130), 3) and _near(image, (5, 63), (255, 255, 255), 2)


def test_one_pixel_is_enlarged() -> None:
    image = read(_file(Image.new("RGB", (1, 1), RED)), PLACE)
    assert image.size == (MIN_SIDE, MIN_SIDE)
    assert _near(image, (9, 9), RED)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_8000_by_8000_is_made_smaller(kind: str) -> None:
    image = read(_file(Image.new("L", (8000, 8000), 99), kind), PLACE)
    assert image.size == (MAX_SIDE, MAX_SIDE)
    assert _near(image, (1000, 1000), (99, 99, 99))


def test_proportions_are_kept_and_slivers_stretched() -> None:
    assert read(_file(_halves((4000, 1000))), PLACE).size == (2048, 512)
    assert read(_file(_halves((3000, 2))), PLACE).size == (2048, MIN_SIDE)
    assert read(_file(_halves((2, 100))), PLACE).size == (MIN_SIDE, 100)


def test_the_limit_against_decompression_bombs_is_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for size in ((40, 40), (100, 100)):  # Pillow only warns of the first
        with pytest.raises(T2Error, match=r"owner/pictures, split 'validation', row 7.*decompression bombs \(1,000\)"):
            read(_file(_halves(size)), PLACE)


def _broken_checksum() -> bytes:
    data = bytearray(_file(_halves()))
    data[data.index(b"IDAT") + 20] ^= 0xFF
    return bytes(data)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (_file(_halves(), "PNG")[:120], "cannot be read whole"),
        (_file(_halves((400, 300)), "JPEG")[:2000], "cannot be read whole"),
        (_broken_checksum(), "cannot be read whole"),
        (b"this is a text and no picture", "not an image file"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image file"),
        (b"", "the field is empty"),
        (None, "the field is empty"),
        ({"bytes": None, "path": None}, "the field is empty"),
        ({"bytes": None, "path": "/no/such/file.png"}, "its file cannot be read"),
        (12.5, "it is a float"),
        (_file(Image.fromarray(np.ones((40, 40), dtype=np.float32)), "TIFF"), "floating-point"),
    ],
    ids=["cut PNG", "cut JPEG", "damaged PNG", "text", "EPS", "empty", "none", "empty mapping", "no file", "a number", "floats"],
)
def test_what_is_refused_is_named(source: Any, why: str) -> None:
    with pytest.raises(T2Error, match=rf"owner/pictures, split 'validation', row 7, cannot be used: .*{why}"):
        read(source, PLACE)


def test_paths_mappings_and_pillow_images(tmp_path: Path) -> None:
    path = tmp_path / "halves.png"
    path.write_bytes(_file(_halves()))
    for source in (path, str(path), {"path": str(path), "bytes": None}, {"path": "halves.png", "bytes": path.read_bytes()}, _halves()):
        assert _near(read(source, PLACE), (10, 30), RED)


def test_the_first_frame_of_several() -> None:
    frames = [Image.new("RGB", (40, 40), RED), Image.new("RGB", (40, 40), BLUE)]
    assert _near(read(_file(frames[0], "GIF", save_all=True, append_images=frames[1:]), PLACE), (20, 20), RED)


def test_no_warning_escapes_and_the_filters_stay() -> None:
    before = list(warnings.filters)
    read(_file(_halves()), PLACE)
    assert list(warnings.filters) == before
