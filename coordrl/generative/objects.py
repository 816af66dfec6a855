"""Detection of the objects in pictures, for the measures.

There are two ways. :func:`color_centers` takes the center of all pixels of a color, whatever their
shape. :func:`find_objects` looks for a square or a disc of the right size, and returns how well it
fits, so that smears and double objects can be recognized.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from coordrl.generative.data import Canvas, Objects, object_masks

_PICTURES_AT_ONCE = 100


def color_masks(pictures: Tensor) -> Tensor:
    """Return which pixels are blue, and which red: above both other channels by half the range.

    Args:
        pictures: ``(N, 3, H, W)``, in [-1, 1]; values outside are clamped.

    Returns:
        Boolean masks ``(N, 2, H, W)``.

    Raises:
        ValueError: If the shape is another, or a value is not finite.
    """
    if pictures.ndim != 4 or pictures.shape[1] != 3:
        raise ValueError(f"expected pictures of shape (N, 3, H, W), got {tuple(pictures.shape)}")
    if not pictures.isfinite().all():
        raise ValueError("expected pictures of finite numbers; the generator has diverged")
    red, green, blue = pictures.clamp(-1, 1).unbind(dim=1)
    is_blue = (blue - torch.maximum(red, green)) > 1
    is_red = (red - torch.maximum(green, blue)) > 1
    return torch.stack([is_blue, is_red], dim=1)


def color_centers(pictures: Tensor, canvas: Canvas) -> tuple[Tensor, Tensor]:
    """Return the mean place of the blue and of the red pixels in each picture.

    The paper does not say how it finds the centers. Here a color counts as missing if it has fewer
    than 30 pixels, scaled by the area of objects for radii other than 10.

    Returns:
        Columns x and rows y in pixels, ``(N, 2, 2)``, NaN where a color has no pixel; and whether
        each color is there, ``(N, 2)``.

    Example:
        >>> from coordrl.generative.data import draw_pictures
        >>> objects = Objects(torch.tensor([[[12, 20], [50, 40]]]), torch.tensor([[True, False]]))
        >>> color_centers(draw_pictures(objects, Canvas()), Canvas())
        (tensor([[[12., 20.],
                 [50., 40.]]]), tensor([[True, True]]))
    """
    masks = color_masks(pictures).float()
    counts = masks.sum(dim=(2, 3))
    pixels = torch.arange(masks.shape[-1], device=masks.device, dtype=masks.dtype)
    x = (masks.sum(dim=2) * pixels).sum(dim=2) / counts
    y = (masks.sum(dim=3) * pixels).sum(dim=2) / counts
    return torch.stack([x, y], dim=2), counts >= 30 * (canvas.radius / 10) ** 2


@dataclass(frozen=True)
class FoundObjects:
    """The best fitting blue and red object in each of N pictures."""

    objects: Objects
    """Their places and shapes."""
    overlap: Tensor
    """Intersection over union of the color's pixels with the object, ``(N, 2)``."""
    outside: Tensor
    """Pixels of the color outside the object, over its area, ``(N, 2)``."""
    other: Tensor
    """Fraction of pixels that are neither blue, red nor white, ``(N,)``."""

    def is_valid(self, overlap: float = 0.7) -> Tensor:
        """Return which pictures show one blue and one red object, and nothing else; ``(N,)``.

        Args:
            overlap: Least intersection over union.
        """
        fits = (self.overlap >= overlap) & (self.outside <= 0.25)
        return fits.all(dim=1) & (self.other <= 0.05)


def find_objects(pictures: Tensor, canvas: Canvas) -> FoundObjects:
    """Find the blue and the red object that fit each picture best.

    A color's pixels are compared with the square and the disc at all places where they fit on the
    canvas; the place and shape with the largest intersection over union are chosen.

    Args:
        pictures: ``(N, 3, size, size)``, in [-1, 1].
        canvas: Their sizes.

    Raises:
        ValueError: If the pictures do not have the canvas's size or three channels, or are not
            finite.

    Example:
        >>> from coordrl.generative.data import draw_pictures
        >>> objects = Objects(torch.tensor([[[12, 20], [50, 40]]]), torch.tensor([[True, False]]))
        >>> found = find_objects(draw_pictures(objects, Canvas()), Canvas())
        >>> found.objects.centers.tolist(), found.objects.is_disc.tolist()
        ([[[12, 20], [50, 40]]], [[True, False]])
    """
    if pictures.shape[-2:] != (canvas.size, canvas.size):
        raise ValueError(
            f"expected pictures of {canvas.size}x{canvas.size} pixels,"
            f" got {pictures.shape[-2]}x{pictures.shape[-1]}"
        )
    parts = [_find(part, canvas) for part in torch.split(pictures, _PICTURES_AT_ONCE)]
    objects, overlap, outside, other = zip(*parts, strict=True)
    return FoundObjects(
        Objects(
            torch.cat([found.centers for found in objects]),
            torch.cat([found.is_disc for found in objects]),
        ),
        torch.cat(overlap),
        torch.cat(outside),
        torch.cat(other),
    )


def _find(pictures: Tensor, canvas: Canvas) -> tuple[Objects, Tensor, Tensor, Tensor]:
    masks = color_masks(pictures)
    templates = _templates(canvas, pictures.device)
    areas = templates.sum(dim=(1, 2, 3))
    places = canvas.num_places

    shared = F.conv2d(
        masks.flatten(0, 1).unsqueeze(1).float(), templates
    )  # (2N, 2, places, places)
    counts = masks.sum(dim=(2, 3)).flatten()
    union = counts.view(-1, 1, 1, 1) + areas.view(1, 2, 1, 1) - shared
    overlap, index = (shared / union).flatten(1).max(dim=1)
    is_disc, place = index // places**2, index % places**2
    best_shared = shared.flatten(1).gather(1, index.unsqueeze(1)).squeeze(1)
    outside = (counts - best_shared) / areas[is_disc]

    centers = torch.stack([place % places, place // places], dim=1) + canvas.radius
    is_white = (pictures > 0).all(dim=1)
    other = ~(masks.any(dim=1) | is_white)
    return (
        Objects(centers.view(-1, 2, 2), is_disc.view(-1, 2).bool()),
        overlap.view(-1, 2),
        outside.view(-1, 2),
        other.float().mean(dim=(1, 2)),
    )


def _templates(canvas: Canvas, device: torch.device) -> Tensor:
    """Return a square and a disc that fill their window, ``(2, 1, side, side)``."""
    middle = torch.full((1, 2, 2), canvas.radius, device=device)
    both = Objects(middle, torch.tensor([[False, True]], device=device))
    side = 2 * canvas.radius + 1
    return object_masks(both, canvas)[0, :, None, :side, :side].float()
