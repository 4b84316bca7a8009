"""Pictures of the embedded world: rows of printed letters, figures and coloured shapes, drawn from a seed when they are needed.

A picture is a tuple of rows, top to bottom; a row is text in which each of `SHAPES` is a drawn shape. Nothing is stored. The glyphs are
bitmaps of our own and the pixels are set by hand, so that no release of Pillow, and no font, can change a picture: Pillow only wraps them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

SIZE = 40
"""Width and height in pixels."""
ROW = 8
"""Height of a row, and width of a shape, in pixels: one patch of the vision tower."""
LETTER = 4
"""Width of a letter or figure, with the pixel behind it. Rows begin at a whole number of letters."""
ROWS = SIZE // ROW
SHAPES = "●■▲◆✚○"

_LETTERS = (
    "a010101111101101 b110101110101110 c011100100100011 d110101101101110 e111100110100111 f111100110100100 g011100101101011 "
    "h101101111101101 i111010010010111 j001001001101010 k101101110101101 l100100100100111 m101111111101101 n110101101101101 "
    "o010101101101010 p110101110100100 q010101101110011 r110101110101101 s011100010001110 t111010010010010 u101101101101111 "
    "v101101101101010 w101101111111101 x101101010101101 y101101010010010 z111001010100111 "
    "0111101101101111 1010110010010111 2111001111100111 3111001011001111 4101101111001001 5111100111001111 6111100111101111 "
    "7111001001010010 8111101111101111 9111101111001111 +000010111010000 -000000111000000 *000101010101000 (001010010010001 "
    ")100010010010100"
)
_DRAWN: Mapping[str, str] = {
    "●": "0011100 0111110 1111111 1111111 1111111 0111110 0011100",
    "■": "1111111 1111111 1111111 1111111 1111111 1111111 1111111",
    "▲": "0001000 0001000 0011100 0011100 0111110 0111110 1111111",
    "◆": "0001000 0011100 0111110 1111111 0111110 0011100 0001000",
    "✚": "0011100 0011100 1111111 1111111 1111111 0011100 0011100",
    "○": "0011100 0110110 1100011 1100011 1100011 0110110 0011100",
}
_COLOURS = ((230, 60, 50), (50, 170, 80), (50, 90, 220), (235, 190, 40), (170, 60, 190), (240, 130, 40), (40, 190, 200), (150, 100, 60))


@lru_cache(maxsize=1)
def _glyphs() -> dict[str, NDArray[np.bool_]]:
    """Character → bitmap, 5 × 3 for letters, figures and signs, 7 × 7 for shapes."""
    found = {word[0]: np.array([bit == "1" for bit in word[1:]]).reshape(5, 3) for word in _LETTERS.split()}
    for shape, lines in _DRAWN.items():
        found[shape] = np.array([[bit == "1" for bit in line] for line in lines.split()])
    return found


def width(row: str) -> int:
    """The width of a row in pixels: each glyph and one pixel behind it; a space takes none."""
    return sum(_glyphs()[character].shape[1] + 1 for character in row if character != " ")


def first_row(rows: Sequence[str], seed: int) -> int:
    """In which of the `ROWS` rows a picture begins."""
    return random.Random(seed).randrange(ROWS - len(rows) + 1)


def pixels(rows: Sequence[str], seed: int) -> NDArray[np.uint8]:
    """The pixels of a picture.

    Args:
        rows: at most `ROWS` rows, each at most `SIZE` pixels wide, of the characters a to z, 0 to 9, `+-*()` and `SHAPES`.
        seed: of the colours, the places and the noise.

    Returns:
        (SIZE, SIZE, 3), uint8.

    Raises:
        KeyError: a character that has no glyph.
        ValueError: more than fits.
    """
    if len(rows) > ROWS or any(width(row) > SIZE for row in rows):
        raise ValueError(f"A picture has room for {ROWS} rows of {SIZE} pixels, not for {list(rows)}.")
    rng = random.Random(seed)
    top = rng.randrange(ROWS - len(rows) + 1) * ROW
    light = rng.random() < 0.5
    shade = rng.randrange(200, 240) if light else rng.randrange(0, 40)
    canvas = np.full((SIZE, SIZE, 3), shade, dtype=np.int16)
    for line, row in enumerate(rows):
        colour = np.array(rng.choice(_COLOURS), dtype=np.int16)
        colour = colour // 2 if light else colour // 2 + 127
        left = rng.randrange(min(SIZE - width(row), ROW) // LETTER + 1) * LETTER
        shift = rng.randrange(2)
        for character in row.replace(" ", ""):
            glyph = _glyphs()[character]
            height, across = glyph.shape
            above = top + line * ROW + (shift if height == 7 else shift + 1)
            canvas[above : above + height, left : left + across][glyph] = colour
            left += across + 1
    noise = np.frombuffer(rng.randbytes(canvas.size), dtype=np.uint8).reshape(canvas.shape) >> 4
    return np.asarray((canvas + noise).clip(0, 255), dtype=np.uint8)


def draw(rows: Sequence[str], seed: int) -> Image.Image:
    """A picture as Pillow has it, in RGB. Arguments and errors are those of `pixels`."""
    from PIL import Image

    return Image.fromarray(pixels(rows, seed))
