"""The three coordinate tasks: their inputs, targets, losses and metrics.

Metrics are those of the authors' code, with one value per picture, so that they can be averaged
over any part of a set.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from coordrl.coordinates.data import (
    Canvas,
    InputScale,
    one_hot_images,
    pixel_index,
    scaled_vectors,
    square_images,
)

TaskName = Literal["classification", "rendering", "regression"]


@dataclass(frozen=True)
class Goal:
    """When a task counts as solved.

    Example:
        >>> Goal("iou", 0.99).is_reached(0.995), Goal("error", 0.5, least=True).is_reached(0.7)
        (True, False)
    """

    metric: str
    """The task's main metric."""
    threshold: float
    """The value that solves it."""
    least: bool = False
    """True if less is better."""

    def is_reached(self, value: float, threshold: float | None = None) -> bool:
        """Tell whether a value is as good as the threshold, or as another one."""
        threshold = self.threshold if threshold is None else threshold
        return value <= threshold if self.least else value >= threshold


class Task(Protocol):
    """Interface of a task to training and evaluation. Centers are places in pixels, ``(N, 2)``."""

    @property
    def goal(self) -> Goal:
        """When the task counts as solved."""
        ...

    def inputs(self, centers: Tensor) -> Tensor:
        """Return the network's input for pictures with the square at these places."""
        ...

    def loss(self, outputs: Tensor, centers: Tensor) -> Tensor:
        """Return the mean loss of the network's outputs."""
        ...

    def metrics(self, outputs: Tensor, centers: Tensor) -> dict[str, Tensor]:
        """Return each metric of each picture, ``(N,)``."""
        ...


@dataclass(frozen=True)
class Classification:
    """From a place to its pixel: softmax over all pixels.

    Example:
        >>> task = Classification(Canvas(size=8, square=3))
        >>> logits = one_hot_images(torch.tensor([[4, 6]]), task.canvas)
        >>> task.metrics(logits, centers=torch.tensor([[1, 2]]))
        {'accuracy': tensor([0.]), 'distance': tensor([5.]), 'manhattan': tensor([7.])}
    """

    canvas: Canvas
    input_scale: InputScale = "unit"
    goal: Goal = Goal("accuracy", 1.0)

    def inputs(self, centers: Tensor) -> Tensor:
        """Return the places themselves, ``(N, 2)``."""
        return scaled_vectors(centers, self.canvas, self.input_scale)

    def loss(self, outputs: Tensor, centers: Tensor) -> Tensor:
        """Return the cross-entropy of logits ``(N, 1, H, W)``."""
        return F.cross_entropy(outputs.flatten(1), pixel_index(centers, self.canvas))

    def metrics(self, outputs: Tensor, centers: Tensor) -> dict[str, Tensor]:
        """Return whether the best pixel is right, and how far off it is, in pixels."""
        index = outputs.flatten(1).argmax(dim=1)
        found = torch.stack([index % self.canvas.size, index // self.canvas.size], dim=1)
        off = (found - centers).float()
        return {
            "accuracy": (index == pixel_index(centers, self.canvas)).float(),
            "distance": off.norm(dim=1),
            "manhattan": off.abs().sum(dim=1),
        }


@dataclass(frozen=True)
class Rendering:
    """From a place to the picture with the square there.

    Example:
        >>> task = Rendering(Canvas(size=8, square=3))
        >>> logits = square_images(torch.tensor([[3, 2]]), task.canvas) - 0.5
        >>> task.metrics(logits, centers=torch.tensor([[2, 2]]))
        {'iou': tensor([0.5000])}
    """

    canvas: Canvas
    input_scale: InputScale = "unit"
    goal: Goal = Goal("iou", 0.99)

    def inputs(self, centers: Tensor) -> Tensor:
        """Return the places themselves, ``(N, 2)``."""
        return scaled_vectors(centers, self.canvas, self.input_scale)

    def loss(self, outputs: Tensor, centers: Tensor) -> Tensor:
        """Return the sigmoid cross-entropy of logits ``(N, 1, H, W)``, averaged over pixels."""
        return F.binary_cross_entropy_with_logits(outputs, square_images(centers, self.canvas))

    def metrics(self, outputs: Tensor, centers: Tensor) -> dict[str, Tensor]:
        """Return the intersection over union; a pixel is painted above a probability of 0.5."""
        painted, wanted = outputs > 0, square_images(centers, self.canvas) > 0
        intersection = (painted & wanted).sum(dim=(1, 2, 3))
        union = (painted | wanted).sum(dim=(1, 2, 3))
        return {"iou": intersection / union}


@dataclass(frozen=True)
class Regression:
    """From a one-hot picture to its place.

    Example:
        >>> task = Regression(Canvas(size=64))
        >>> task.metrics(torch.tensor([[0.5, 0.25]]), centers=torch.tensor([[32, 18]]))
        {'error': tensor([2.]), 'accuracy': tensor([0.])}
    """

    canvas: Canvas
    goal: Goal = Goal("error", 0.5, least=True)

    def inputs(self, centers: Tensor) -> Tensor:
        """Return the pictures, ``(N, 1, H, W)``."""
        return one_hot_images(centers, self.canvas)

    def loss(self, outputs: Tensor, centers: Tensor) -> Tensor:
        """Return the mean squared error of places ``(N, 2)``, in units of the canvas."""
        return F.mse_loss(outputs, centers / self.canvas.size)

    def metrics(self, outputs: Tensor, centers: Tensor) -> dict[str, Tensor]:
        """Return the Euclidean error in pixels, and whether the nearest pixel is right."""
        off = outputs * self.canvas.size - centers
        return {
            "error": off.norm(dim=1),
            "accuracy": (off.round() == 0).all(dim=1).float(),
        }


def make_task(name: TaskName, canvas: Canvas, input_scale: InputScale) -> Task:
    """Return a task by its name; regression sees pictures and has no input scale.

    Example:
        >>> make_task("rendering", Canvas(), "unit").goal
        Goal(metric='iou', threshold=0.99, least=False)
    """
    if name == "regression":
        return Regression(canvas)
    return (Classification if name == "classification" else Rendering)(canvas, input_scale)
