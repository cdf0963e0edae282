"""Which bodies of a generated scene a picture shows where they are: a meter of "bodies neither vanish nor split".

It knows the fixed palette of difficulty 0 alone.  What a picture shows besides the true bodies (a third ball, a ghost
of another colour) does not count against it, nor does the shape of a disc's largest piece.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from ..data.sources.scenes import BACKGROUND, BLUE, GROUND, RED, Colour

PALETTE: tuple[Colour, ...] = (BACKGROUND, GROUND, RED, BLUE)
FARTHEST = 120.0  # in RGB, from the palette's colour: half way from red to the background
AREA = (0.5, 1.5)  # of a disc's largest piece, in true areas
OVERLAP = 0.5  # least intersection over union of a colour of boxes
SMALLEST = 0.002  # of the picture: a body that shows less is hidden (a whole one shows a 60th or more)


def colour_mask(pictures: np.ndarray, colour: Colour) -> np.ndarray:
    """Where pictures, uint8 ``[..., 3]``, are of a colour: bool ``[...]``.

    A pixel is of the nearest colour of the palette (background, ground, red, blue; squares of RGB), unless it is
    farther than 120 from it.  ValueError for a colour that is not of the palette.
    """
    palette = np.array(PALETTE, np.float32)
    distances = np.square(pictures[..., None, :].astype(np.float32) - palette).sum(-1)
    nearest = distances.argmin(-1) == PALETTE.index(colour)
    return nearest & (distances.min(-1) <= FARTHEST**2)


def found_disc(shown: np.ndarray, truth: np.ndarray) -> bool:
    """Whether the largest connected piece (by edges) of a mask is the true disc: its centre of mass at most a radius,
    which is that of a circle of the true area, from the true one, its area 0.5 to 1.5 of the true area.

    shown, truth: bool ``[H, W]``; the truth must not be empty.
    """
    pieces, count = ndimage.label(shown)
    if not count:
        return False
    areas = np.bincount(pieces.ravel())[1:]
    largest, area = 1 + int(areas.argmax()), int(truth.sum())
    if not AREA[0] * area <= areas.max() <= AREA[1] * area:
        return False
    centres = ndimage.center_of_mass(pieces == largest), ndimage.center_of_mass(truth)
    return math.dist(*centres) <= math.sqrt(area / math.pi)


def found_boxes(shown: np.ndarray, truth: np.ndarray) -> bool:
    """Whether two masks, bool ``[H, W]``, overlap by half: intersection over union of 0.5 or more."""
    return bool((shown & truth).sum() >= OVERLAP * (shown | truth).sum())


def share_found(picture: np.ndarray, masks: np.ndarray, colours: Sequence[Colour], discs: bool) -> float:
    """The share of a frame's bodies that a picture shows: 0 to 1, nan where the truth shows none.

    Discs count one by one, boxes by colour, all boxes of a colour together: three dominoes of two colours touch as they
    fall, and their pieces could not be told apart.  A body, or colour, that shows less than 0.2 % of the true frame is
    hidden and does not count.

    Args:
        picture: uint8 ``[H, W, 3]``, the frame to judge.
        masks: bool ``[bodies, H, W]``, the truth, as `simulate_scene` gives it.
        colours: of the bodies, from the palette.
        discs: all bodies are discs, no two of one colour; else all are boxes.

    Raises:
        ValueError: shapes that do not fit, or two discs of one colour.
    """
    if picture.shape != (*masks.shape[1:], 3) or len(colours) != len(masks):
        raise ValueError(f"share_found: {picture.shape}, masks {masks.shape}, {len(colours)} colours: do not fit")
    different = dict.fromkeys(colours)
    if discs and len(different) < len(colours):
        raise ValueError(f"share_found: discs of colours {colours}: two of one colour cannot be told apart")
    found = []
    for colour in different:
        truth = np.logical_or.reduce(masks[[own == colour for own in colours]], axis=0)
        if truth.sum() >= SMALLEST * truth.size:
            found.append((found_disc if discs else found_boxes)(colour_mask(picture, colour), truth))
    return float(np.mean(found)) if found else math.nan
