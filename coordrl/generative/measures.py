"""How much of the data a generator has forgotten, measured without learned weights.

The paper reports three entropies of the places of objects. They miss much: a generator that draws
only squares, or five hundred pictures over and over, looks good by them. So there is a row of
several measures, each compared with that of real pictures against other real pictures.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.stats import wasserstein_distance
from torch import Tensor

from coordrl.generative.data import Canvas, Objects
from coordrl.generative.objects import color_centers, find_objects

OVERLAPS = (0.5, 0.6, 0.7, 0.8)
"""Least intersections over union at which pictures count as valid."""
MIN_VALID = 50
"""Least number of valid pictures for measures of them."""

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Entropies:
    """The paper's measure of mode collapse: entropies of the objects' places, in nats.

    On 1,000 true pictures of the paper's size: 4.00, 4.00 and 3.52. Collapse lowers them.
    """

    red: float
    """Entropy of the red center."""
    blue: float
    """Entropy of the blue center."""
    difference: float
    """Entropy of the difference, red minus blue."""
    missing: float
    """Fraction of pictures that lack one of the two; they are left out of the entropies."""


def paper_entropies(pictures: Tensor, canvas: Canvas) -> Entropies:
    """Return the entropies of the centers of colors in pictures ``(N, 3, size, size)``.

    The paper does not give its bins. With 10 x 10 bins, over the canvas for centers and over
    [-size, size] for their difference, true pictures have the entropies that it reports for data.

    Example:
        >>> from coordrl.generative.data import draw_objects, draw_pictures
        >>> canvas = Canvas()
        >>> objects = draw_objects(canvas, 1000, torch.Generator().manual_seed(0))
        >>> found = paper_entropies(draw_pictures(objects, canvas), canvas)
        >>> round(found.red, 1), round(found.blue, 1), round(found.difference, 1)
        (4.0, 4.0, 3.5)
    """
    centers, is_there = color_centers(pictures, canvas)
    kept = is_there.all(dim=1)
    missing = 1 - float(kept.float().mean())
    if not kept.any():
        return Entropies(0.0, 0.0, 0.0, missing)
    blue, red = centers[kept].unbind(dim=1)
    size = canvas.size
    return Entropies(
        red=_binned_entropy(red, 0, size),
        blue=_binned_entropy(blue, 0, size),
        difference=_binned_entropy(red - blue, -size, size),
        missing=missing,
    )


def _binned_entropy(points: Tensor, low: float, high: float, bins: int = 10) -> float:
    index = ((points - low) / (high - low) * bins).long().clamp(0, bins - 1)
    counts = torch.bincount(index[:, 0] * bins + index[:, 1])
    return entropy(counts.cpu().numpy())


def entropy(counts: NDArray[np.int64]) -> float:
    """Return the entropy of a histogram in nats.

    Example:
        >>> round(entropy(np.array([5, 5, 0])), 4)
        0.6931
    """
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum()) + 0.0  # turns -0.0 into 0.0


@dataclass(frozen=True)
class Row:
    """Measures of a set of pictures, compared with equally many real ones.

    Those from ``cells`` on are of the valid pictures only, and None if there are fewer than
    :data:`MIN_VALID`.
    """

    pictures: int
    """Number of pictures."""
    valid: tuple[float, ...]
    """Fraction of valid pictures at each of :data:`OVERLAPS`; the other measures use 0.7."""
    average_spread: float
    """Standard deviation of the average picture over its pixels; lower is more even."""
    cells: float | None = None
    """Fraction of the cells of a grid, 11 x 11 or as fine as the canvas has places, that have a
    center in them, averaged over the two objects."""
    entropy: float | None = None
    """Entropy over both shapes and both places in 4 x 4 bins, 1,024 states, in nats, with the
    Miller-Madow correction for small samples."""
    divergence: float | None = None
    """Jensen-Shannon divergence from the real pictures over the same states, in nats, [0, 0.69]."""
    wasserstein: float | None = None
    """Wasserstein distance of each of the four coordinates from the real pictures' distribution,
    in pixels, averaged."""
    sliced_wasserstein: float | None = None
    """The same over random directions of the four coordinates together, in pixels."""
    discs: float | None = None
    """Fraction of discs among the objects, 0.5 in the data."""
    recall: float | None = None
    """Fraction of real places within the five-neighbor radius of a generated place."""
    coverage: float | None = None
    """Fraction of real places with a generated place within their own five-neighbor radius."""
    duplicates: int | None = None
    """Pairs of pictures with equal shapes and places at most one pixel apart, as one vector of both
    objects: the birthday test. m equally likely pictures give about n^2 / 2m pairs."""


def measure(pictures: Tensor, real: Objects, canvas: Canvas) -> Row:
    """Return the row of pictures ``(N, 3, size, size)``, in [-1, 1].

    Args:
        pictures: The pictures to measure.
        real: The objects in real pictures, best equally many, since divergence and distances
            depend on the number.
        canvas: Sizes of the pictures.

    Raises:
        ValueError: If there are no pictures, they do not fit the canvas or are not finite, or
            enough of them are valid but fewer than 6 are real.
    """
    if len(pictures) == 0 or len(real) == 0:
        raise ValueError(f"expected pictures to compare, got {len(pictures)} and {len(real)} real")
    found = find_objects(pictures, canvas)
    valid = found.is_valid()
    shares = tuple(float(found.is_valid(overlap).float().mean()) for overlap in OVERLAPS)
    average = pictures.mean(dim=0)
    spread = float(average.flatten(1).std(dim=1, correction=0).mean())
    if int(valid.sum()) < MIN_VALID:
        return Row(len(pictures), shares, spread)

    objects = found.objects.take(valid.nonzero().squeeze(1))
    states, real_states = _states(objects, canvas), _states(real, canvas)
    points, real_points = _points(objects), _points(real)
    recall, coverage = recall_and_coverage(points, real_points)
    return Row(
        pictures=len(pictures),
        valid=shares,
        average_spread=spread,
        cells=_cells_hit(objects, canvas),
        entropy=_miller_madow(states),
        divergence=jensen_shannon(states, real_states),
        wasserstein=_mean_distance(points, real_points, np.eye(4)),
        sliced_wasserstein=_mean_distance(points, real_points, _directions()),
        discs=float(objects.is_disc.float().mean()),
        recall=recall,
        coverage=coverage,
        duplicates=near_duplicates(objects),
    )


def _points(objects: Objects) -> Points:
    """Return the four coordinates of both centers, ``(N, 4)``."""
    return objects.centers.flatten(1).cpu().numpy().astype(np.float64)


def _bins(objects: Objects, canvas: Canvas, bins: int) -> Tensor:
    """Return the bin of each object's center in a grid over all possible places, ``(N, 2)``."""
    index = (objects.centers - canvas.radius) * bins // canvas.num_places
    return index[..., 0] * bins + index[..., 1]


def _cells_hit(objects: Objects, canvas: Canvas) -> float:
    side = min(11, canvas.num_places)
    blue, red = _bins(objects, canvas, side).unbind(dim=1)
    return (len(torch.unique(blue)) + len(torch.unique(red))) / (2 * side**2)


def _states(objects: Objects, canvas: Canvas) -> NDArray[np.int64]:
    """Return how many pictures are in each of 4 x 16 x 16 states."""
    blue, red = _bins(objects, canvas, 4).unbind(dim=1)
    shapes = objects.is_disc[:, 0] * 2 + objects.is_disc[:, 1]
    index = (shapes * 16 + blue) * 16 + red
    return torch.bincount(index, minlength=1024).cpu().numpy()


def _miller_madow(counts: NDArray[np.int64]) -> float:
    """Return the entropy, corrected for the bias of the plug-in estimate (Miller, 1955)."""
    return entropy(counts) + (int(np.count_nonzero(counts)) - 1) / (2 * int(counts.sum()))


def jensen_shannon(counts: NDArray[np.int64], others: NDArray[np.int64]) -> float:
    """Return the Jensen-Shannon divergence of two histograms, in nats.

    Example:
        >>> one, two = np.array([4, 0]), np.array([0, 9])
        >>> round(jensen_shannon(one, two), 4), jensen_shannon(one, one)
        (0.6931, 0.0)
    """

    def excess(shares: Points, middle: Points) -> float:
        there = shares > 0
        return float((shares[there] * np.log(shares[there] / middle[there])).sum())

    first, second = counts / counts.sum(), others / others.sum()
    middle = (first + second) / 2
    return (excess(first, middle) + excess(second, middle)) / 2


def _directions(count: int = 64) -> Points:
    """Return unit vectors in four dimensions, always the same; ``(count, 4)``."""
    vectors = np.random.default_rng(0).standard_normal((count, 4))
    unit: Points = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _mean_distance(points: Points, others: Points, directions: Points) -> float:
    distances = [wasserstein_distance(points @ d, others @ d) for d in directions]
    return math.fsum(distances) / len(distances)


def recall_and_coverage(points: Points, real: Points, neighbors: int = 5) -> tuple[float, float]:
    """Return recall and coverage of the real points, each in [0, 1].

    A point's ball reaches to its ``neighbors``-th neighbor in its own set. Recall (Kynkäänniemi et
    al., NeurIPS 2019) is the fraction of real points in the ball of some point. Coverage (Naeem et
    al., ICML 2020) is the fraction of real points whose own ball contains some point.

    Raises:
        ValueError: If a set has ``neighbors`` points or fewer, so that its balls would be endless.

    Example:
        >>> real = np.arange(10.0)[:, None]
        >>> recall_and_coverage(real[[0, 9]], real, neighbors=1)
        (1.0, 0.4)
    """
    if min(len(points), len(real)) <= neighbors:
        raise ValueError(
            f"balls that reach to neighbor {neighbors} need {neighbors + 1} points or more of each"
            f" kind, got {len(points)} and {len(real)} real"
        )
    own, others = cKDTree(points), cKDTree(real)
    radii = own.query(points, k=neighbors + 1)[0][:, -1]
    reached = np.zeros(len(real), dtype=bool)
    for index in others.query_ball_point(points, radii):
        reached[index] = True
    real_radii = others.query(real, k=neighbors + 1)[0][:, -1]
    nearest = own.query(real)[0]
    return float(reached.mean()), float((nearest <= real_radii).mean())


def near_duplicates(objects: Objects) -> int:
    """Return the number of pairs of pictures with equal shapes and nearly equal places.

    The four coordinates of their objects, as one vector, are at most one pixel apart.

    Example:
        >>> place = torch.tensor([[[10, 10], [40, 40]]])
        >>> near_duplicates(Objects(place.repeat(4, 1, 1), torch.zeros(4, 2, dtype=torch.bool)))
        6
    """
    points, shapes = _points(objects), objects.is_disc.cpu().numpy()
    apart = shapes * 1e6  # unequal shapes are far from each other
    tree = cKDTree(np.concatenate([points, apart], axis=1))
    return int((tree.count_neighbors(tree, r=1) - len(points)) // 2)
