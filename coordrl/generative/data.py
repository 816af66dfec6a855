"""Two-object Sort-of-Clevr: a blue and a red object on white, drawn on demand.

Liu et al., "An intriguing failing of convolutional neural networks and the CoordConv solution",
NeurIPS 2018: each object is a filled square or a disc. The authors store 50,000 pictures. Here the
set is a list of objects, and batches are drawn from it, on the device. Discs have the same pixels
as those that OpenCV draws for the authors.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from coordrl.config import take_types


class Pictures(Protocol):
    """A set of pictures that hands out batches of them."""

    def __len__(self) -> int:
        """Return the number of pictures."""

    def batch(self, indices: Tensor, device: torch.device) -> Tensor:
        """Return the pictures with these indices, ``(N, 3, size, size)``, in [-1, 1]."""

    def checksum(self) -> str:
        """Return a checksum of what is cheap to know of the pictures, to notice other ones.

        It is empty for pictures that are drawn, which depend on nothing but the settings.
        """


@dataclass(frozen=True)
class Canvas:
    """Sizes of a picture and of the objects in it. The defaults are the paper's.

    Objects lie wholly on the canvas; their centers are pixels, at least two radii apart.

    Raises:
        ValueError: If two objects do not fit.
    """

    size: int = 64
    """Height and width of the canvas, in pixels."""
    radius: int = 10
    """Radius of a disc; a square is ``2 * radius + 1`` pixels wide."""

    def __post_init__(self) -> None:
        take_types(self)
        if self.radius < 1:
            raise ValueError(f"radius must be at least 1 pixel, got {self.radius}")
        # With one object in the middle, the other must fit in a corner.
        if 2 * (self.num_places // 2) ** 2 < (2 * self.radius) ** 2:
            raise ValueError(
                f"a canvas of {self.size} pixels is too small for two objects of radius"
                f" {self.radius}; {6 * self.radius} are enough"
            )

    @property
    def num_places(self) -> int:
        """Number of possible pixels of a center on each axis, the first being ``radius``."""
        return max(self.size - 2 * self.radius, 0)


@dataclass(frozen=True)
class Objects:
    """The objects in each of N pictures: a blue and a red one, in this order."""

    centers: Tensor
    """Column x and row y of each center, in pixels, ``(N, 2, 2)``."""
    is_disc: Tensor
    """Whether each is a disc rather than a square, ``(N, 2)``."""

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.centers)

    def take(self, indices: Tensor) -> "Objects":
        """Return the objects of some of the pictures."""
        return Objects(self.centers[indices], self.is_disc[indices])


def draw_objects(canvas: Canvas, count: int, generator: torch.Generator) -> Objects:
    """Draw random objects: blue anywhere, red anywhere two radii or more away from it.

    As in the authors' generator, red is redrawn until it is far enough away, so it is near a corner
    more often than blue.

    Args:
        canvas: Sizes of the pictures.
        count: Number of pictures.
        generator: Source of the random numbers; the result is on its device.

    Example:
        >>> objects = draw_objects(Canvas(), 1000, torch.Generator().manual_seed(0))
        >>> blue, red = objects.centers.unbind(dim=1)
        >>> bool(((blue - red).square().sum(dim=1) >= (2 * Canvas().radius) ** 2).all())
        True
    """
    device = generator.device

    def places(number: int) -> Tensor:
        shape, first = (number, 2), canvas.radius
        return first + torch.randint(canvas.num_places, shape, generator=generator, device=device)

    blue, red = places(count), places(count)
    while len(near := _is_near(blue, red, canvas).nonzero().squeeze(1)):
        red[near] = places(len(near))
    is_disc = torch.rand(count, 2, generator=generator, device=device) < 0.5
    return Objects(torch.stack([blue, red], dim=1), is_disc)


def _is_near(blue: Tensor, red: Tensor, canvas: Canvas) -> Tensor:
    return (blue - red).square().sum(dim=1) < (2 * canvas.radius) ** 2


def object_masks(objects: Objects, canvas: Canvas) -> Tensor:
    """Return the pixels that each object covers, ``(N, 2, size, size)``, a boolean mask.

    Example:
        >>> objects = Objects(torch.tensor([[[1, 1], [4, 4]]]), torch.tensor([[True, False]]))
        >>> object_masks(objects, Canvas(size=6, radius=1))[0, 0, :3, :3].int()
        tensor([[0, 1, 0],
                [1, 1, 1],
                [0, 1, 0]], dtype=torch.int32)
    """
    pixels = torch.arange(canvas.size, device=objects.centers.device)
    away = (pixels - objects.centers.unsqueeze(3)).abs()  # (N, 2, xy, size)
    dx, dy = away[:, :, 0, None, :], away[:, :, 1, :, None]
    square = (dx <= canvas.radius) & (dy <= canvas.radius)
    disc = dx.square() + dy.square() <= canvas.radius**2
    return torch.where(objects.is_disc[:, :, None, None], disc, square)


def draw_pictures(objects: Objects, canvas: Canvas) -> Tensor:
    """Draw the blue objects on white, and then the red ones; ``(N, 3, size, size)``, -1 or 1.

    Example:
        >>> objects = Objects(torch.tensor([[[12, 20], [50, 40]]]), torch.tensor([[True, False]]))
        >>> draw_pictures(objects, Canvas())[0, :, 20, 12]
        tensor([-1., -1.,  1.])
    """
    blue, red = object_masks(objects, canvas).unsqueeze(2).unbind(dim=1)
    colors = objects.centers.new_tensor([[-1, -1, 1], [1, -1, -1]]).float().view(2, 3, 1, 1)
    return colors[1].where(red, colors[0].where(blue, 1.0))


class SortOfClevr:
    """The set: ``count`` random pictures of a seed.

    Args:
        canvas: Sizes of the pictures.
        count: Number of pictures, 50,000 in the paper.
        seed: Seed of the objects.

    Attributes:
        canvas: Sizes of the pictures.
        objects: The objects in them.

    Raises:
        ValueError: If ``count`` is below 1.

    Example:
        >>> pictures = SortOfClevr(Canvas(), count=100)
        >>> pictures.batch(torch.arange(16), torch.device("cpu")).shape
        torch.Size([16, 3, 64, 64])
    """

    def __init__(self, canvas: Canvas, count: int = 50_000, seed: int = 0) -> None:
        if count < 1:
            raise ValueError(f"a set needs at least one picture, got count={count}")
        self.canvas = canvas
        self.objects = draw_objects(canvas, count, torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.objects)

    def batch(self, indices: Tensor, device: torch.device) -> Tensor:
        """Draw the pictures with these indices on the device."""
        taken = self.objects.take(indices)
        on_device = Objects(taken.centers.to(device), taken.is_disc.to(device))
        return draw_pictures(on_device, self.canvas)

    def checksum(self) -> str:
        """Return nothing: the settings tell the pictures."""
        return ""
