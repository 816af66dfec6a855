"""What a painter has learned: where it puts its probability, and how much it depends on place.

The summed probability maps and the maps of neighboring places are figures of the paper. The
translation analysis is ours: the paper argues that a CoordConv net can be as translation-dependent
as its task requires, but does not measure it.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coordrl.coordinates.data import Canvas, one_hot_images
from coordrl.coordinates.networks import CoordConvPainter, DeconvPainter
from coordrl.coordinates.tasks import Classification
from coordrl.coordinates.training import Run
from coordrl.layers import CoordConv2d

_PICTURES_AT_ONCE = 4


def summed_probabilities(network: nn.Module, task: Classification, centers: Tensor) -> Tensor:
    """Return the sum of the softmax maps for all these places.

    A network that is certain and right has 1 at each of the places and 0 elsewhere.

    Args:
        network: Painter with logits as its output.
        task: What it was trained for.
        centers: Places (x, y) in pixels, ``(N, 2)``.

    Returns:
        Map of shape ``(size, size)`` that sums to N.

    Example:
        >>> from coordrl.coordinates.data import places
        >>> task = Classification(Canvas(size=8, square=3))
        >>> total = summed_probabilities(CoordConvPainter(8), task, places(task.canvas))
        >>> total.shape, round(float(total.sum()), 3)
        (torch.Size([8, 8]), 36.0)
    """
    network.eval()
    size = task.canvas.size
    total = torch.zeros(size * size, device=centers.device)
    with torch.inference_mode():
        for part in torch.split(centers, _PICTURES_AT_ONCE):
            total += network(task.inputs(part)).flatten(1).softmax(dim=1).sum(dim=0)
    return total.view(size, size)


def total_variation(probabilities: Tensor, centers: Tensor, canvas: Canvas) -> float:
    """Return the distance of a summed map from the true one: the fraction of misplaced mass.

    Args:
        probabilities: The map of :func:`summed_probabilities` for these places.
        centers: Places (x, y) in pixels, ``(N, 2)``.
        canvas: Sizes of the pictures.

    Returns:
        Half the sum of absolute differences of both maps scaled to sum 1, in [0, 1].

    Example:
        >>> canvas, centers = Canvas(size=8, square=3), torch.tensor([[1, 1], [2, 5]])
        >>> one_is_wrong = one_hot_images(torch.tensor([[1, 1], [3, 5]]), canvas).sum(dim=(0, 1))
        >>> total_variation(one_is_wrong, centers, canvas)
        0.5
    """
    truth = one_hot_images(centers, canvas).sum(dim=(0, 1))
    return float((probabilities / probabilities.sum() - truth / truth.sum()).abs().sum() / 2)


def logits_of_neighbors(network: nn.Module, task: Classification, center: Tensor) -> Tensor:
    """Return the logits for a place and the two to its right, ``(3, size, size)``."""
    network.eval()
    device = next(network.parameters(), center).device
    centers = (center + torch.tensor([[0, 0], [1, 0], [2, 0]])).to(device)
    with torch.inference_mode():
        logits: Tensor = network(task.inputs(centers)).squeeze(1)
    return logits


@dataclass(frozen=True)
class CoordinateNorm:
    """Norms of the two parts of a CoordConv layer's weight."""

    layer: str
    coordinates: float
    inputs: float

    @property
    def ratio(self) -> float:
        """Root mean square of a coordinate weight over that of an input weight."""
        return self.coordinates / self.inputs


def coordinate_norms(network: nn.Module) -> list[CoordinateNorm]:
    """Return the root mean square weight on coordinates and on inputs of each CoordConv layer."""
    norms = []
    for name, module in network.named_modules():
        if isinstance(module, CoordConv2d):
            parts = [module.weight.shape[1] - module.num_coords, module.num_coords]
            inputs, coordinates = torch.split(module.weight.detach(), parts, dim=1)
            rms = [float(part.square().mean().sqrt()) for part in (coordinates, inputs)]
            norms.append(CoordinateNorm(name, *rms))
    return norms


def equivariance_error(
    network: nn.Module, task: Classification, centers: Tensor, shift: int
) -> float:
    """Return how far a painter is from equivariance, where the picture moves with the place.

    Compares the softmax map for the place moved right by ``shift`` pixels with the map for the
    place itself, moved right. A perfect painter has 0, though each of its pixels depends on its
    position: places are given as coordinates, so only a network that knows coordinates can be
    equivariant here.

    Args:
        network: Painter with logits as its output.
        task: What it was trained for.
        centers: Places (x, y) that are at least ``shift`` pixels from the last column.
        shift: Pixels to the right, at least 1.

    Returns:
        Mean total-variation distance of the two maps, in [0, 1].

    Raises:
        ValueError: If there is no place, or a moved place is off the canvas.
    """
    moved = centers + torch.tensor([shift, 0], device=centers.device)
    if shift < 1 or len(centers) == 0 or int(moved[:, 0].max()) >= task.canvas.size:
        raise ValueError(
            f"a shift by {shift} pixels must keep all places on the canvas of {task.canvas.size}"
        )
    network.eval()
    size, total = task.canvas.size, 0.0
    with torch.inference_mode():
        for here, there in zip(
            torch.split(centers, _PICTURES_AT_ONCE),
            torch.split(moved, _PICTURES_AT_ONCE),
            strict=True,
        ):
            before, after = (
                network(task.inputs(part)).flatten(1).softmax(dim=1).view(-1, size, size)
                for part in (here, there)
            )
            # Mass that the shift pushes off the canvas counts as misplaced.
            expected, lost = F.pad(before, (shift, 0))[..., :size], before[..., size - shift :]
            total += float((expected - after).abs().sum() + lost.sum()) / 2
    return total / len(centers)


def last_features(
    network: CoordConvPainter | DeconvPainter, task: Classification, centers: Tensor
) -> Tensor:
    """Return the input of the painter's last layer for each place, subsampled.

    If the size is a multiple of 8, 8x8 pixels are left; otherwise fewer than 16x16.

    Args:
        network: One of the painters.
        task: What it was trained for.
        centers: Places (x, y) in pixels, ``(N, 2)``.

    Returns:
        Activations of shape ``(N, channels * pixels)``.
    """
    network.eval()
    rows = []
    with torch.inference_mode():
        for part in torch.split(centers, _PICTURES_AT_ONCE):
            features = network.features(task.inputs(part))
            step = max(1, features.shape[2] // 8)
            rows.append(features[:, :, step // 2 :: step, step // 2 :: step].flatten(1))
    return torch.cat(rows)


def principal_components(features: Tensor, count: int = 2) -> Tensor:
    """Return the coordinates of each row along the directions of greatest variance.

    Args:
        features: Rows of numbers, ``(N, channels)``.
        count: Number of directions.

    Returns:
        Projections of the centered rows, ``(N, count)``, the direction of greatest variance first.

    Example:
        >>> on_a_line = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
        >>> principal_components(on_a_line, count=1).abs().round().flatten()
        tensor([5., 0., 5.])
    """
    centered = features - features.mean(dim=0)
    if not centered.isfinite().all():  # the network has diverged
        return centered.new_full((len(centered), count), torch.nan)
    with torch.random.fork_rng(devices=[]):  # it starts from random directions
        torch.manual_seed(0)
        # A few extra directions make the result exact; the full SVD takes 10 s.
        _, _, directions = torch.pca_lowrank(
            centered, q=min(count + 6, *centered.shape), center=False, niter=4
        )
    projections: Tensor = centered @ directions[:, :count]
    return projections


@dataclass
class Trace:
    """Follows a classification run: pass it to :meth:`coordrl.coordinates.training.Run.train`.

    Example:
        >>> from coordrl.coordinates.training import CoordinateSettings, Recipe
        >>> settings = CoordinateSettings(canvas=Canvas(8, 3), training=Recipe(epochs=1))
        >>> trace = Trace(interval=1, shifts=(1,))
        >>> _ = Run(settings).train(on_step=trace)
        >>> trace.steps
        [1, 2]
    """

    interval: int
    """Steps between two measurements."""
    shifts: tuple[int, ...] = (1, 4, 16)
    """Shifts for the equivariance error, in pixels."""
    pictures: int = 64
    """Number of places to measure, spread over those with room for the shift."""
    steps: list[int] = field(default_factory=list)
    errors: list[list[float]] = field(default_factory=list)
    """Equivariance error for each shift at each of the steps."""
    ratios: list[float | None] = field(default_factory=list)
    """Ratio of coordinate to input weights of the first CoordConv layer, if there is one."""

    def __call__(self, run: Run) -> None:
        """Measure the network if due."""
        if run.step % self.interval != 0:
            return
        if not isinstance(run.task, Classification):
            raise ValueError("the equivariance error is defined for classification only")
        centers = torch.cat([run.train_centers, run.test_centers])
        inside = run.settings.canvas.size - run.settings.canvas.square // 2
        self.steps.append(run.step)
        row = []
        for shift in self.shifts:
            own = centers[centers[:, 0] + shift < inside]
            own = own[:: max(1, len(own) // self.pictures)]
            row.append(equivariance_error(run.network, run.task, own, shift))
        self.errors.append(row)
        norms = coordinate_norms(run.network)
        self.ratios.append(norms[0].ratio if norms else None)
