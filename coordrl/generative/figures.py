"""Figures: sample grids, average pictures, places of objects, films of interpolations."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from coordrl.files import atomic_file
from coordrl.generative.data import Canvas
from coordrl.generative.objects import color_centers
from coordrl.generative.training import RunResult

_COLORS = {"none": "tab:red", "all": "tab:blue"}
_NAMES = {"none": "without coordinates", "all": "with coordinates"}


def to_bytes(pictures: Tensor) -> Tensor:
    """Return pictures ``(..., 3, H, W)`` in [-1, 1] as uint8 with channels last, on the CPU."""
    scaled = (pictures.clamp(-1, 1) + 1) * 127.5
    return scaled.round().to(torch.uint8).movedim(-3, -1).cpu()


def grid(pictures: Tensor, columns: int = 10) -> Tensor:
    """Lay pictures ``(N, 3, H, W)`` out row by row, with a gray line between them.

    Returns:
        One picture ``(3, rows * (H + 1) - 1, columns * (W + 1) - 1)``.
    """
    count, channels, height, width = pictures.shape
    rows = -(-count // columns)
    sheet = pictures.new_zeros(rows * columns, channels, height + 1, width + 1)
    sheet[:count, :, :height, :width] = pictures
    sheet = sheet.view(rows, columns, channels, height + 1, width + 1).permute(2, 0, 3, 1, 4)
    return sheet.reshape(channels, rows * (height + 1), columns * (width + 1))[:, :-1, :-1]


def save_picture(picture: Tensor, path: Path, *, enlarge: int = 1) -> None:
    """Write a picture ``(3, H, W)`` as PNG, each pixel ``enlarge`` pixels wide."""
    image = _enlarged(picture, enlarge)
    with atomic_file(path) as file:
        image.save(file, format="png")


def save_film(frames: Tensor, path: Path, *, enlarge: int = 1, milliseconds: int = 80) -> None:
    """Write frames ``(T, 3, H, W)`` as a GIF that plays forwards and backwards, forever."""
    images = [_enlarged(frame, enlarge) for frame in torch.cat([frames, frames[1:-1].flip(0)])]
    with atomic_file(path) as file:
        images[0].save(
            file,
            format="gif",
            save_all=True,
            append_images=images[1:],
            duration=milliseconds,
            loop=0,
        )


def _enlarged(picture: Tensor, enlarge: int) -> Image.Image:
    image = Image.fromarray(to_bytes(picture).numpy())
    size = image.width * enlarge, image.height * enlarge
    return image.resize(size, Image.Resampling.NEAREST)


def comparison(pictures: Mapping[str, Tensor], canvas: Canvas) -> Figure:
    """Draw samples, their average and the centers of their objects, a row for each name.

    Args:
        pictures: Equally many pictures ``(N, 3, size, size)`` for each name.
        canvas: Their sizes.
    """
    figure = Figure(figsize=(10.5, 2.7 * len(pictures)), layout="constrained")
    axes = figure.subplots(len(pictures), 5, squeeze=False)
    for row, (name, own) in enumerate(pictures.items()):
        samples, average, red, blue, difference = axes[row]
        samples.imshow(to_bytes(grid(own[:36], columns=6)).numpy())
        samples.set_ylabel(name)
        average.imshow(to_bytes(own.mean(dim=0)).numpy())
        centers, is_there = color_centers(own, canvas)
        of_blue, of_red = centers[is_there.all(dim=1)].cpu().unbind(dim=1)
        _scatter(red, of_red, "tab:red", 0, canvas.size)
        _scatter(blue, of_blue, "tab:blue", 0, canvas.size)
        _scatter(difference, of_red - of_blue, "tab:purple", -canvas.size, canvas.size)
        for one in axes[row]:
            one.set(xticks=[], yticks=[])
    titles = ["samples", "average", "red centers", "blue centers", "red minus blue"]
    for one, title in zip(axes[0], titles, strict=True):
        one.set_title(title, fontsize=10)
    return figure


def _scatter(axes: Axes, points: Tensor, color: str, low: float, high: float) -> None:
    axes.scatter(points[:, 0].numpy(), points[:, 1].numpy(), s=3, color=color, alpha=0.5)
    axes.set_xlim(low, high)
    axes.set_ylim(high, low)  # rows count downwards
    axes.set_aspect("equal")


def entropy_curves(results: Sequence[RunResult]) -> Figure:
    """Draw the paper's entropies of runs against the number of training batches."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, 3), ("red", "blue", "difference"), strict=True):
        labeled: set[str] = set()
        for result in results:
            coords = result.settings.coords
            points = [point for point in result.curve if point.entropies is not None]
            axes.plot(
                [point.step for point in points],
                [getattr(point.entropies, name) for point in points],
                color=_COLORS[coords],
                label=None if coords in labeled else _NAMES[coords],
                alpha=0.8,
            )
            labeled.add(coords)
        axes.axhline(
            getattr(results[0].real.entropies, name), color="gray", linestyle=":", label="data"
        )
        axes.set_title(name)
        axes.set_xlabel("batches")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("entropy in nats")
    figure.axes[0].legend(fontsize=8)
    return figure
