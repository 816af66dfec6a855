"""From one latent vector to another: do the objects move, or fade here and appear there?

The paper shows films of it. Here it is measured: the middle of each color is followed along the
way.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from coordrl.generative.data import Canvas
from coordrl.generative.objects import color_centers, find_objects


def interpolate(first: Tensor, second: Tensor, steps: int) -> Tensor:
    """Return latent vectors on the way from one to another, both ends among them.

    A straight mix is short in its middle, where the generator knows no vector. It is scaled to the
    mix of both lengths, as in the authors' ``util.py``.

    Args:
        first: ``(N, latent)``.
        second: ``(N, latent)``.
        steps: Vectors on the way, at least 2.

    Returns:
        Vectors of shape ``(N, steps, latent)``.

    Raises:
        ValueError: If there are no two ends.

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
    """What objects do on their way, averaged over ways and the two objects.

    Ways whose ends do not show an object are left out for it, as are those that lead nowhere: the
    ends less than a radius apart.
    """

    ways: int
    """Ways that were followed, at most two for each pair of latent vectors."""
    visible: float
    """Share of the steps between the ends at which the object is there at all."""
    whole: float
    """Share of the steps between the ends at which the picture shows two whole objects."""
    largest_step: float
    """The longest move between two steps at which the object is there, over the distance of the
    ends. 1 if it vanishes here and appears there."""
    detour: float
    """Length of the path over the distance of the ends; 1 is straight."""
    moved: float
    """Share of the ways on which the object is there at each step and never moves by more than a
    quarter of the distance, that is, walks."""


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
    """Return what one object does on one way, or None if that cannot be told."""
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
