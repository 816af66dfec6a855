"""Not-so-Clevr: one square at every place of a canvas, and its train-test splits.

Liu et al., "An intriguing failing of convolutional neural networks and the CoordConv
solution", NeurIPS 2018. A 9x9 square is drawn at all 56 x 56 = 3,136 places where it
fits into a 64x64 canvas. Everything follows from the places, so the set is built in memory.

The authors' generator draws the square in gray, 128/255. Its intersection-over-union then cannot
exceed 0.502, and the cross-entropy pulls every pixel to the threshold of painting. Here a square
is 1.0, as the paper's text has it.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from coordrl.config import take_types

Split = Literal["uniform", "quadrant", "uniform-80-20"]
InputScale = Literal["unit", "pixel"]

# Seed of the authors' generator, data/not_so_clevr_generator.py in uber-research/CoordConv.
_AUTHORS_SEED = 20202


@dataclass(frozen=True)
class Canvas:
    """The size of the pictures and of the square in them.

    Raises:
        ValueError: If the square has no center pixel or does not fit.

    Example:
        >>> Canvas().num_places
        3136
    """

    size: int = 64
    """Height and width of the canvas, in pixels."""
    square: int = 9
    """Height and width of the square, an odd number of pixels."""

    def __post_init__(self) -> None:
        take_types(self)
        if self.square < 1 or self.square % 2 == 0:
            raise ValueError(f"square must be an odd number of pixels, got {self.square}")
        if self.size < self.square:
            raise ValueError(f"a square of {self.square} does not fit a canvas of {self.size}")

    @property
    def num_places(self) -> int:
        """Number of places where the whole square is on the canvas."""
        return (self.size - self.square + 1) ** 2


def places(canvas: Canvas) -> Tensor:
    """Return the center (x, y) of the square in every picture, x in the outer loop.

    Args:
        canvas: Sizes of the pictures.

    Returns:
        Pixel indices of shape ``(num_places, 2)``, int64; x counts columns, y rows, from 0.

    Example:
        >>> places(Canvas(size=4, square=3)).tolist()
        [[1, 1], [1, 2], [2, 1], [2, 2]]
    """
    half = canvas.square // 2
    inside = torch.arange(half, canvas.size - half)
    return torch.cartesian_prod(inside, inside)


def is_test(canvas: Canvas, split: Split) -> Tensor:
    """Return which of the :func:`places` are held back for testing.

    ``"quadrant"`` holds back the lower right quarter, x and y above half the canvas: 729 of
    3,136. ``"uniform"`` is the released code's draw, which holds back each place with probability
    0.25: the same 768 places. ``"uniform-80-20"`` follows the paper's text: 627 at random.

    Returns:
        Mask of shape ``(num_places,)``.

    Raises:
        ValueError: If there is no such split.

    Example:
        >>> [int(is_test(Canvas(), split).sum()) for split in ("uniform", "quadrant")]
        [768, 729]
    """
    if split == "quadrant":
        return (places(canvas) * 2 > canvas.size).all(dim=1)
    # The same stream as after the authors' numpy.random.seed.
    random = np.random.RandomState(_AUTHORS_SEED)
    if split == "uniform":
        return torch.from_numpy(random.random_sample(canvas.num_places) < 0.25)
    if split == "uniform-80-20":
        held_back = torch.zeros(canvas.num_places, dtype=torch.bool)
        order = torch.from_numpy(random.permutation(canvas.num_places))
        held_back[order[: round(0.2 * canvas.num_places)]] = True
        return held_back
    raise ValueError(f"split must be one of {', '.join(get_args(Split))}, got {split!r}")


def scaled_vectors(centers: Tensor, canvas: Canvas, scale: InputScale) -> Tensor:
    """Return places as the input of a network.

    The released code feeds raw pixel indices together with coordinate channels in [-1, 1].

    Args:
        centers: Places (x, y) in pixels, ``(N, 2)``.
        canvas: Sizes of the pictures.
        scale: ``"pixel"`` for the indices themselves; ``"unit"`` for the same scale as the
            coordinate channels: -1 in the first, 1 in the last column or row.

    Returns:
        Vectors of shape ``(N, 2)``, float32.

    Raises:
        ValueError: If there is no such scale.

    Example:
        >>> scaled_vectors(torch.tensor([[0, 63]]), Canvas(size=64), "unit")
        tensor([[-1.,  1.]])
    """
    if scale == "pixel":
        return centers.float()
    if scale == "unit":
        return centers.float() / (canvas.size - 1) * 2 - 1
    raise ValueError(f"input_scale must be one of {', '.join(get_args(InputScale))}, got {scale!r}")


def pixel_index(centers: Tensor, canvas: Canvas) -> Tensor:
    """Return the index of each center in the flattened picture, row by row; ``(N,)``.

    Example:
        >>> pixel_index(torch.tensor([[1, 2]]), Canvas(size=4, square=3))
        tensor([9])
    """
    return centers[:, 1] * canvas.size + centers[:, 0]


def one_hot_images(centers: Tensor, canvas: Canvas) -> Tensor:
    """Return pictures of shape ``(N, 1, size, size)``, 1.0 at the center and 0 elsewhere.

    Example:
        >>> one_hot_images(torch.tensor([[2, 1]]), Canvas(size=4, square=3))[0, 0]
        tensor([[0., 0., 0., 0.],
                [0., 0., 1., 0.],
                [0., 0., 0., 0.],
                [0., 0., 0., 0.]])
    """
    images = torch.zeros(len(centers), canvas.size**2, device=centers.device)
    images.scatter_(1, pixel_index(centers, canvas).unsqueeze(1), 1.0)
    return images.view(-1, 1, canvas.size, canvas.size)


def square_images(centers: Tensor, canvas: Canvas) -> Tensor:
    """Return pictures of shape ``(N, 1, size, size)``, 1.0 in the square and 0 elsewhere.

    Example:
        >>> square_images(torch.tensor([[2, 1]]), Canvas(size=4, square=3))[0, 0]
        tensor([[0., 1., 1., 1.],
                [0., 1., 1., 1.],
                [0., 1., 1., 1.],
                [0., 0., 0., 0.]])
    """
    pixels = torch.arange(canvas.size, device=centers.device)
    inside = (pixels - centers.unsqueeze(2)).abs() <= canvas.square // 2
    columns, rows = inside[:, 0], inside[:, 1]
    return (rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1).float()
