"""Pictures of boxes beside the truth, and curves of runs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch import Tensor

from coordrl.detection.data import Scenes
from coordrl.detection.roi_heads import Detections
from coordrl.detection.rpn import Proposals
from coordrl.detection.training import RunResult
from coordrl.files import atomic_file

Picture = npt.NDArray[np.uint8]

_TRUTH, _FOUND = (80, 220, 80), (255, 150, 40)
_COLORS = {"none": "tab:red", "first": "tab:green", "all": "tab:blue"}
_MIN_SCORE = 0.5  # proposals and detections with a lower score are not drawn


def draw_scenes(
    scenes: Scenes,
    proposals: Proposals,
    detections: Detections | None = None,
    *,
    zoom: int = 3,
    margin: int = 0,
) -> Picture:
    """Draw each scene twice: with its true boxes, and with the boxes that were found.

    Args:
        scenes: The pictures and their true boxes, in green.
        proposals: Proposals of a first stage; drawn if there are no detections.
        detections: Detections of a second stage, drawn with their labels.
        zoom: Factor that pictures are enlarged by.
        margin: Pixels to show around each picture, for boxes that extend beyond it.

    Returns:
        An RGB picture of all scenes in a row, ``(H, W, 3)``, true boxes above found ones.
    """
    found = proposals if detections is None else detections
    is_sure = found.is_there & (found.scores >= _MIN_SCORE)
    labels = None if detections is None else detections.labels
    columns = [
        np.concatenate(
            [
                _draw(scenes.images[i, 0], scenes.boxes[i], scenes.labels[i], _TRUTH, zoom, margin),
                _draw(
                    scenes.images[i, 0],
                    found.boxes[i],
                    torch.where(is_sure[i], 0 if labels is None else labels[i], -1),
                    _FOUND,
                    zoom,
                    margin,
                    is_labeled=labels is not None,
                ),
            ]
        )
        for i in range(len(scenes))
    ]
    return np.concatenate(columns, axis=1)


def _draw(
    image: Tensor,
    boxes: Tensor,
    labels: Tensor,
    color: tuple[int, int, int],
    zoom: int,
    margin: int,
    *,
    is_labeled: bool = True,
) -> Picture:
    """Draw boxes ``(M, 4)`` over a picture ``(H, W)``; a label below 0 means no box."""
    padded = np.pad(image.cpu().numpy(), margin, constant_values=40)
    height, width = padded.shape
    picture = Image.fromarray(padded).convert("RGB")
    picture = picture.resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(picture)
    for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
        if label < 0:
            continue
        x1, y1, x2, y2 = ((edge + margin) * zoom for edge in box)
        pen.rectangle((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), outline=color)
        if is_labeled:
            pen.text((x1 + 2, y1), str(label), fill=color)
    pen.rectangle((0, 0, width * zoom - 1, height * zoom - 1), outline=(90, 90, 90))
    return np.asarray(picture, dtype=np.uint8)


def save_picture(picture: Picture, path: Path) -> None:
    """Write an RGB picture as PNG, whole or not at all."""
    with atomic_file(path) as file:
        Image.fromarray(picture).save(file, format="png", optimize=True)


def learning_curves(results: Sequence[RunResult], layouts: Sequence[str]) -> Figure:
    """Draw the test IOU of runs against pictures seen, one panel for each layout of anchors."""
    figure = Figure(figsize=(4.2 * len(layouts), 3.4), layout="constrained")
    grid = figure.subplots(1, len(layouts), squeeze=False, sharey=True)
    for axes, layout in zip(grid[0], layouts, strict=True):
        labeled: set[str] = set()
        for result in results:
            settings = result.settings
            if settings.proposals.anchor_layout != layout:
                continue
            coords = settings.coords
            axes.plot(
                [point.step * settings.training.batch_size / 1000 for point in result.curve],
                [point.test["best_iou"] for point in result.curve],
                color=_COLORS[coords],
                label=None if coords in labeled else f"coords={coords!r}",
                alpha=0.7,
            )
            labeled.add(coords)
        axes.set_title(f"anchors: {layout}")
        axes.set_xlabel("thousand pictures")
        axes.set_ylabel("test IOU of proposals")
        axes.grid(alpha=0.3)
        axes.legend()
    return figure
