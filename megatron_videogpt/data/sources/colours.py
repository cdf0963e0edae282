"""Plain English names of colours."""

from __future__ import annotations

from .scenes import Colour

NAMES: dict[str, tuple[Colour, ...]] = {
    "black": ((15, 15, 15),),
    "grey": ((128, 128, 128), (80, 80, 80), (185, 185, 185)),
    "white": ((250, 250, 250),),
    "red": ((215, 30, 30), (145, 15, 25)),
    "orange": ((245, 135, 20), (245, 170, 115)),
    "yellow": ((245, 225, 45), (190, 180, 20), (240, 225, 140)),
    "green": ((45, 165, 50), (130, 220, 90), (15, 80, 25), (120, 150, 85), (175, 225, 165)),
    "turquoise": ((50, 205, 195), (10, 125, 125)),
    "blue": ((40, 85, 215), (10, 10, 250), (15, 20, 110), (110, 165, 245), (85, 120, 170), (155, 200, 235)),
    "purple": ((130, 50, 190), (75, 15, 90), (175, 130, 225), (215, 60, 220), (110, 70, 115)),
    "pink": ((245, 135, 185), (235, 40, 150), (240, 190, 200)),
    "brown": ((125, 75, 35), (75, 45, 20), (195, 155, 110), (140, 100, 85)),
}
"""Examples of each name: lighter and darker ones where people use one word for both."""


def colour_name(colour: Colour) -> str:
    """The name of the nearest example, by distance in CIELAB (D65).  colour: sRGB, 0..255 each."""
    point = _lab(colour)
    return min(EXAMPLES, key=lambda example: sum((a - b) ** 2 for a, b in zip(example[0], point)))[1]


def _lab(colour: Colour) -> tuple[float, float, float]:
    """CIELAB coordinates, where equal distances look about equally different."""
    r, g, b = (c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour)
    x = (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505
    y = 0.2126 * r + 0.7152 * g + 0.0722 * b
    z = (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.089
    fx, fy, fz = (t ** (1 / 3) if t > 216 / 24389 else (24389 / 27 * t + 16) / 116 for t in (x, y, z))
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


EXAMPLES = [(_lab(colour), name) for name, colours in NAMES.items() for colour in colours]
