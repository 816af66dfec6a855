"""From one latent vector to another: do objects move, or fade here and appear there?

The paper shows films of this. Here it is measured, by following the center of each color.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from coordrl.generative.data import Canvas
from coordrl.generative.objects import color_centers, find_objects


def interpolate(first: Tensor, second: Tensor, steps: int) -> Tensor:
    """Return latent vectors between two others, including both ends.

    A linear mix is too short in the middle, unlike any vector the generator was trained with. It is
    scaled to the mix of both lengths, as in the authors' ``util.py``.

    Args:
        first: ``(N, latent)``.
        second: ``(N, latent)``.
        steps: Number of vectors, at least 2.

    Returns:
        Vectors of shape ``(N, steps, latent)``.

    Raises:
        ValueError: If ``steps`` is below 2.

    Example:
        >>> interpolate(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]]), 3)[0, 1].norm()
        tensor(3.0000)
    """
    if steps < 2:
        raise ValueError(f"a way has two ends, got steps={steps}")
    share = torch.linspace(0, 1, steps, device=first.device).view(1, -1, 1)
    mixed = first.unsqueeze(1).lerp(second.unsqueeze(1), share)
    lengths = first.norm(dim=1).view(-1, 1, 1).lerp(second.norm(dim=1).view(-1, 1, 1), share)
    scaled: Tensor = mixed * (lengths / mixed.norm(dim=2, keepdim=True).clamp_min(1e-12))
    return scaled


@dataclass(frozen=True)
class Motion:
    """How objects move during interpolations, averaged over both objects.

    An interpolation does not count for an object that is missing at one end, or whose ends are less
    than a radius apart.
    """

    ways: int
    """Paths that were followed, at most two for each pair of latent vectors."""
    visible: float
    """Fraction of the steps between the ends at which the object is there at all."""
    whole: float
    """Fraction of the steps between the ends at which the picture shows two whole objects."""
    largest_step: float
    """The longest move between two steps at which the object is there, over the distance of the
    ends. 1 if it vanishes at one end and appears at the other."""
    detour: float
    """Length of the path over the distance of the ends; 1 is straight."""
    moved: float
    """Fraction of the paths on which the object is there at each step and never moves by more than
    a quarter of the distance."""


def follow(pictures: Tensor, canvas: Canvas) -> Motion:
    """Follow the blue and the red object through pictures.

    Args:
        pictures: ``(N, steps, 3, size, size)``, in [-1, 1], at least three steps.
        canvas: Their sizes.

    Raises:
        ValueError: If there are fewer than three steps.

    Example:
        >>> from coordrl.generative.data import Objects, draw_pictures
        >>> centers = torch.tensor([[[x, 12], [50, 50]] for x in (12, 20, 28, 36, 44)])
        >>> objects = Objects(centers, is_disc=torch.ones(5, 2, dtype=torch.bool))
        >>> motion = follow(draw_pictures(objects, Canvas()).unsqueeze(0), Canvas())
        >>> motion.ways, motion.largest_step, motion.detour, motion.moved
        (1, 0.25, 1.0, 1.0)
    """
    count, steps = pictures.shape[:2]
    if steps < 3:
        raise ValueError(f"expected three steps or more to follow, got {steps}")
    flat = pictures.flatten(0, 1)
    centers, is_there = color_centers(flat, canvas)
    whole = find_objects(flat, canvas).is_valid(0.5).view(count, steps)[:, 1:-1].float().mean(dim=1)
    paths, seen = centers.view(count, steps, 2, 2), is_there.view(count, steps, 2)
    ways = [
        _follow(paths[way, :, color], seen[way, :, color], float(whole[way]), canvas)
        for way in range(count)
        for color in range(2)
    ]
    followed = [way for way in ways if way is not None]
    if not followed:
        return Motion(0, *[float("nan")] * 5)
    return Motion(len(followed), *torch.tensor(followed).mean(dim=0).tolist())


def _follow(
    path: Tensor, is_there: Tensor, whole: float, canvas: Canvas
) -> tuple[float, float, float, float, float] | None:
    """Return the measures of one object's path, or None if it does not count."""
    if not (is_there[0] and is_there[-1]):
        return None
    distance = float((path[-1] - path[0]).norm())
    if distance < canvas.radius:
        return None
    moves = path[is_there].diff(dim=0).norm(dim=1) / distance
    visible = float(is_there[1:-1].float().mean())
    largest = float(moves.max())
    walks = visible == 1 and largest <= 0.25
    return visible, whole, largest, float(moves.sum()), float(walks)
