"""Pictures: whatever a data set holds as an image, as one that every processor takes, or refused by name.

What comes out is in RGB, upright, without transparency, and between `MIN_SIDE` and `MAX_SIDE` pixels on each side. What cannot be read
whole is refused, with data set, split and row: a picture that is silently grey, cut off or missing would be scored as a wrong answer.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2eval.errors import T2Error
from t2eval.store.files import read_bytes

if TYPE_CHECKING:
    from PIL import Image

MIN_SIDE, MAX_SIDE = 32, 2048
"""Pixels. Below the first, processors take a side for the colours, or divide by zero; beyond the second, none looks any closer."""
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Others are refused: some of Pillow's readers start programs (EPS) or are hardly ever used."""
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_LARGEST = 2**28
"""Bytes of a picture's file."""
_WHITE = (255, 255, 255, 255)


@dataclass(frozen=True)
class Place:
    """Where a picture comes from: what an error names."""

    data_set: str
    split: str
    row: int

    def refuse(self, why: str) -> T2Error:
        """The error for a picture that cannot be used."""
        return T2Error(
            f"The picture of {self.data_set}, split {self.split!r}, row {self.row}, cannot be used: {why} "
            "Mend or leave out that row, or load the data set again if its download was cut off."
        )


def read(source: Any, place: Place) -> Image.Image:
    """One picture.

    Args:
        source: the bytes of an image file; the path of one; a mapping with `bytes` or `path`, as `datasets` gives it undecoded; or a
            Pillow image.
        place: for the error.

    Returns:
        A new image: RGB, turned as its EXIF data say, laid on white where it is transparent, sixteen bits scaled to eight, the first frame
        of several. Longer than `MAX_SIDE`: made smaller with its proportions kept. A side shorter than `MIN_SIDE` is stretched to it.

    Raises:
        T2Error: there is no picture, it is not an image file or one cut off, of a kind that is not read, or larger than Pillow's limit
            against decompression bombs.
    """
    from PIL import Image, UnidentifiedImageError

    opened = source if isinstance(source, Image.Image) else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if opened is None:
                opened = Image.open(_stream(source, place), formats=_FORMATS)
                opened.draft("RGB", (MAX_SIDE, MAX_SIDE))  # a JPEG is then decoded at a fraction of its size
            return _sized(_plain(opened, place))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = f"{Image.MAX_IMAGE_PIXELS:,}" if Image.MAX_IMAGE_PIXELS else "no"
        raise place.refuse(f"it has more pixels than Pillow's limit against decompression bombs ({limit}).") from error
    except UnidentifiedImageError as error:
        raise place.refuse(f"it is not an image file of the kinds {', '.join(_FORMATS)}.") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # Pillow's decoders raise these for damaged files
        raise place.refuse(f"it cannot be read whole ({error}).") from error


def _stream(source: Any, place: Place) -> BytesIO:
    if isinstance(source, Mapping):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, (str, Path)):
        try:
            source = read_bytes(source, what="picture", remedy="", limit=_LARGEST)
        except T2Error as error:
            raise place.refuse(f"its file cannot be read ({str(error).strip()}).") from error
    if not source:
        raise place.refuse("there is none: the field is empty.")
    if not isinstance(source, (bytes, bytearray)):
        raise place.refuse(f"it is a {type(source).__name__}, and bytes, a path or a Pillow image is needed.")
    return BytesIO(bytes(source))


def _plain(image: Image.Image, place: Place) -> Image.Image:
    """Upright and in RGB."""
    from PIL import Image, ImageOps

    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode in _SIXTEEN_BITS:
        return _eight_bits(image).convert("RGB")
    if image.mode == "F":
        raise place.refuse("its pixels are floating-point numbers without a known range.")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Pillow's own conversion cuts at 255, which turns nearly every sixteen-bit picture white."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image).astype(np.int64).clip(0, 65535)
    return Image.fromarray((values // 257).astype(np.uint8))


def _sized(image: Image.Image) -> Image.Image:
    from PIL import Image

    scale = min(1.0, MAX_SIDE / max(image.size))
    width, height = (max(MIN_SIDE, round(side * scale)) for side in image.size)
    return image if (width, height) == image.size else image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
