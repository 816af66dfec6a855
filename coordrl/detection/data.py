"""Scattered MNIST: pictures of digits of many sizes at random places, and the boxes around them.

Liu et al., "An intriguing failing of convolutional neural networks and the CoordConv
solution", NeurIPS 2018: five digits, each stretched to a height and width from 15 to 25 pixels, are
added up on a 120x120 canvas, whose middle 64x64 pixels are kept. As in the released generator, the
boxes of digits outside of this crop stay in the list. Without a crop, on a canvas of 64x64 pixels,
the generator scatters two digits.

For the same digits and seed, positions and sizes are exactly the released generator's. Its loader
forgets to divide the ink by 255 before clipping the sum at 1, which nearly binarizes the digits;
here they are gray, as in its earlier version.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from coordrl.config import require_at_least, take_types
from coordrl.detection.boxes import area, clip
from coordrl.detection.sources import DigitSet

_PICTURES_AT_ONCE = 256


@dataclass(frozen=True)
class Scatter:
    """How digits are scattered; the defaults are the paper's.

    Raises:
        ValueError: If the sizes do not fit into each other.

    Example:
        >>> Scatter(canvas=64, objects=2).picture_size
        64
    """

    canvas: int = 120
    """Height and width of the canvas that the digits lie on, in pixels."""
    crop: int | None = 64
    """Height and width of the crop of its middle; None keeps all of it."""
    objects: int = 5
    """Digits on a canvas."""
    min_size: float = 15.0
    """Least height or width of a digit, in pixels."""
    max_size: float = 25.0
    """Greatest height or width of a digit, in pixels."""
    min_visible: float | None = None
    """Clip boxes to the picture, and drop those with a smaller fraction of their area inside; None
    keeps all boxes whole, as the released generator does."""

    def __post_init__(self) -> None:
        take_types(self)
        if self.min_visible is not None and not 0 < self.min_visible <= 1:
            raise ValueError(f"min_visible must be above 0 and at most 1, got {self.min_visible}")
        require_at_least(0, self, "objects")
        if not 0 < self.min_size <= self.max_size <= self.canvas:
            raise ValueError(
                "digits need 0 < min_size <= max_size <= canvas, got"
                f" {self.min_size}, {self.max_size} and {self.canvas}"
            )
        if self.crop is not None and not 0 < self.crop <= self.canvas:
            raise ValueError(f"crop must be 1 to canvas = {self.canvas} pixels, got {self.crop}")

    @property
    def picture_size(self) -> int:
        """Height and width of a picture."""
        return self.canvas if self.crop is None else self.crop

    @property
    def margin(self) -> int:
        """Pixels that are cropped above and on the left."""
        return (self.canvas - self.picture_size) // 2


@dataclass(frozen=True)
class Scenes:
    """Pictures, and for each of them the boxes of its digits.

    Attributes:
        images: Ink from 0 to 255, ``(N, 1, H, W)``, uint8.
        boxes: ``(x1, y1, x2, y2)`` of each digit, ``(N, M, 4)``, in pixels from the upper left
            corner of the picture; they may lie partly or wholly outside.
        labels: Digits from 0 to 9, ``(N, M)``, int64; -1 where there is no digit and the box is to
            be ignored.

    Raises:
        ValueError: If the images do not have that shape and type, the numbers of boxes and labels
            do not match, or a box has no area.

    Example:
        >>> images, labels = torch.zeros(1, 1, 64, 64, dtype=torch.uint8), torch.tensor([[7]])
        >>> len(Scenes(images, torch.tensor([[[10.0, 10.0, 30.0, 30.0]]]), labels))
        1
        >>> Scenes(images, torch.tensor([[[30.0, 10.0, 10.0, 30.0]]]), labels)
        ... # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: box 0 of image 0 has no area: [30.0, 10.0, 10.0, 30.0]; boxes are ...
    """

    images: Tensor
    boxes: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        n = len(self.images)
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            raise ValueError(
                f"images must be bytes of shape (N, 1, H, W), got {self.images.dtype} of"
                f" {tuple(self.images.shape)}"
            )
        if self.boxes.shape != (n, *self.labels.shape[1:], 4) or self.labels.shape[:1] != (n,):
            raise ValueError(
                f"{n} images need boxes (N, M, 4) and labels (N, M), got"
                f" {tuple(self.boxes.shape)} and {tuple(self.labels.shape)}"
            )
        sizes = self.boxes[..., 2:] - self.boxes[..., :2]
        is_bad = ~(sizes > 0).all(dim=-1) & (self.labels >= 0)
        if bool(is_bad.any()):
            image, box = is_bad.nonzero()[0].tolist()
            corners = [round(value, 3) for value in self.boxes[image, box].tolist()]
            raise ValueError(
                f"box {box} of image {image} has no area: {corners}; boxes are (x1, y1, x2, y2)"
                " with x1 < x2 and y1 < y2"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, chosen: slice | Tensor) -> "Scenes":
        """Return some of the scenes."""
        return Scenes(self.images[chosen], self.boxes[chosen], self.labels[chosen])


def scatter_digits(
    digits: DigitSet,
    scatter: Scatter,
    *,
    count: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> Scenes:
    """Scatter digits over pictures.

    The i-th objects of successive pictures go through the digits in a random order of their own: no
    digit comes a second time before all have come once.

    Args:
        digits: Digits to scatter.
        scatter: Canvas, numbers and sizes.
        count: Number of pictures, at least 1.
        seed: Seed of orders, places and sizes; the released generator takes 0 and 1.
        device: Device to make the pictures on.

    Example:
        >>> from coordrl.detection.sources import load_split
        >>> scenes = scatter_digits(load_split().test, Scatter(), count=3, seed=0)
        >>> scenes.images.shape, scenes.boxes.shape
        (torch.Size([3, 1, 64, 64]), torch.Size([3, 5, 4]))
    """
    if count < 1:
        raise ValueError(f"there must be at least 1 picture, got {count}")
    random = np.random.RandomState(seed)  # the released generator's
    rounds = -(-count // len(digits))
    chosen = np.empty((count, scatter.objects), np.int64)
    for slot in range(scatter.objects):
        orders = [random.permutation(len(digits)) for _ in range(rounds)]
        chosen[:, slot] = np.concatenate(orders)[:count]
    # Random numbers for all pictures of the last round are drawn, so that the first pictures do not
    # depend on the count.
    draws = random.random_sample((rounds * len(digits), scatter.objects, 4))[:count]
    size = (
        scatter.min_size + (scatter.max_size - scatter.min_size) * draws[..., :2]
    )  # height, width
    low, high = size / 2, scatter.canvas - size / 2
    center = low + (high - low) * draws[..., 2:]  # row, column
    corner = center - size / 2

    images = torch.cat(
        [
            _paint(
                torch.from_numpy(digits.images)[chosen[part]].to(device),
                torch.from_numpy(corner[part]).to(device),
                torch.from_numpy(size[part]).to(device),
                scatter,
            )
            for part in _parts(count)
        ]
    )
    edges = np.concatenate([corner[..., ::-1], (corner + size)[..., ::-1]], axis=-1)
    boxes = torch.from_numpy((edges - scatter.margin).astype(np.float32)).to(device)
    labels = torch.from_numpy(digits.labels.astype(np.int64)[chosen]).to(device)
    if scatter.min_visible is not None:
        visible = clip(boxes, scatter.picture_size, scatter.picture_size)
        labels[area(visible) < scatter.min_visible * area(boxes)] = -1
        boxes = visible
    return Scenes(images, boxes, labels)


def _parts(count: int) -> list[slice]:
    return [slice(i, i + _PICTURES_AT_ONCE) for i in range(0, count, _PICTURES_AT_ONCE)]


def _paint(digits: Tensor, corner: Tensor, size: Tensor, scatter: Scatter) -> Tensor:
    """Add up digits ``(N, M, 28, 28)`` at their places ``(N, M, 2)``, (row, column)."""
    n = len(digits)
    length = int(scatter.max_size) + 2  # pixels that a digit can touch along an axis
    ink = digits.float() / 255
    rows = _stretch((digits > 0).any(dim=3), corner[..., 0], size[..., 0], length)
    columns = _stretch((digits > 0).any(dim=2), corner[..., 1], size[..., 1], length)
    stretched = rows @ ink @ columns.mT  # (N, M, length, length)

    side = scatter.canvas + length
    pixels = torch.arange(length, device=digits.device)
    first = corner.floor().long()
    row = first[..., 0, None, None] + pixels[:, None]
    column = first[..., 1, None, None] + pixels
    canvas = ink.new_zeros(n, side * side)
    canvas.scatter_add_(1, (row * side + column).flatten(1), stretched.flatten(1))
    kept = slice(scatter.margin, scatter.margin + scatter.picture_size)
    picture = canvas.view(n, 1, side, side)[:, :, kept, kept].clamp(max=1)
    return (picture * 255).round().to(torch.uint8)


def _stretch(has_ink: Tensor, start: Tensor, length: Tensor, pixels: int) -> Tensor:
    """Return the matrices that stretch one axis of digits, cropped to their ink, by interpolation.

    This is Pillow's bilinear affine transform: an output pixel is interpolated between the middles
    of two input pixels; beyond the outermost middle it has the outermost pixel's value, and beyond
    that pixel's edge 0.

    Args:
        has_ink: Which of the 28 lines of each digit have ink, ``(N, M, 28)``.
        start: Start of each digit on the canvas, in pixels, ``(N, M)``.
        length: Length that it is stretched to, in pixels, ``(N, M)``.
        pixels: Number of output pixels, from the one where the digit starts.

    Returns:
        Weights of shape ``(N, M, pixels, 28)``, float32.
    """
    lines = torch.arange(28, device=has_ink.device)
    first = torch.where(has_ink, lines, 28).amin(dim=-1)
    last = torch.where(has_ink, lines, -1).amax(dim=-1)
    own = (last - first + 1).double()
    middle = start.floor().unsqueeze(-1) + torch.arange(pixels, device=has_ink.device) + 0.5
    at = (middle - start.unsqueeze(-1)) * (own / length).unsqueeze(-1)  # in lines of the ink
    is_inside = (at >= 0) & (at < own.unsqueeze(-1))
    line = (at - 0.5).clamp(min=0).minimum(own.unsqueeze(-1) - 1) + first.unsqueeze(-1)
    weights = (1 - (line.unsqueeze(-1) - lines).abs()).clamp(min=0)
    return (weights * is_inside.unsqueeze(-1)).float()
