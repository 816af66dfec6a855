"""Boxes: overlap, coding, clipping, suppression and RoIAlign, on whole batches.

A box is ``(x1, y1, x2, y2)`` with ``x1 < x2`` and ``y1 < y2``, in pixels: the picture's first
column runs from x = 0 to x = 1. Coding and overlap take boxes with any leading batch axes,
suppression and RoIAlign those of one batch, ``(N, M, 4)``.
"""

import functools
import importlib
import math

import torch
from torch import Tensor

# Sizes change by at most this factor in one step, as in torchvision; the exponential stays finite.
_LARGEST_LOG_SCALE = math.log(1000 / 16)


def area(boxes: Tensor) -> Tensor:
    """Return the area of each box; ``(..., 4)`` to ``(...)``.

    Example:
        >>> area(torch.tensor([[1.0, 1.0, 4.0, 3.0]]))
        tensor([6.])
    """
    sides: Tensor = boxes[..., 2:] - boxes[..., :2]
    return sides.prod(dim=-1)


def pairwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Return intersection over union of every box with every other one.

    Args:
        boxes: Boxes of shape ``(..., A, 4)``.
        others: Boxes of shape ``(..., B, 4)``.

    Returns:
        Values in [0, 1], ``(..., A, B)``; 0 where neither box has an area.

    Example:
        >>> boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
        >>> pairwise_iou(boxes, boxes + torch.tensor([1.0, 0.0, 1.0, 0.0]))
        tensor([[0.3333]])
    """
    own, other = boxes.unsqueeze(-2), others.unsqueeze(-3)
    low = torch.maximum(own[..., :2], other[..., :2])
    high = torch.minimum(own[..., 2:], other[..., 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    union = area(own) + area(other) - shared
    return torch.where(union > 0, shared / union, 0.0)


def encode(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Return the transforms that move anchors to boxes; the inverse of :func:`decode`.

    The center's shift is in widths and heights of the anchor, the change in size is a logarithm.

    Args:
        anchors: Boxes to start from, ``(..., 4)``.
        boxes: Target boxes, of the same shape.

    Returns:
        Transforms ``(x, y, width, height)`` of the same shape.

    Example:
        >>> anchors = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
        >>> encode(anchors, anchors + torch.tensor([2.0, 0.0, 2.0, 0.0]))
        tensor([[0.5000, 0.0000, 0.0000, 0.0000]])
    """
    size, target = anchors[..., 2:] - anchors[..., :2], boxes[..., 2:] - boxes[..., :2]
    way = (boxes[..., :2] + boxes[..., 2:] - anchors[..., :2] - anchors[..., 2:]) / 2
    return torch.cat([way / size, (target / size).log()], dim=-1)


def decode(anchors: Tensor, transforms: Tensor) -> Tensor:
    """Return anchors moved by transforms, of the same shape ``(..., 4)``.

    A side grows to at most 62.5 times its length, so that boxes stay finite; the released code has
    no such limit, and does not need one once it trains.

    Example:
        >>> decode(torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.tensor([[0.5, 0.0, 0.0, 0.0]]))
        tensor([[2., 0., 6., 4.]])
    """
    size = anchors[..., 2:] - anchors[..., :2]
    center = (anchors[..., :2] + anchors[..., 2:]) / 2 + transforms[..., :2] * size
    half = size * transforms[..., 2:].clamp(max=_LARGEST_LOG_SCALE).exp() / 2
    return torch.cat([center - half, center + half], dim=-1)


def clip(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return the part of each box inside the picture; a box outside of it gets zero area.

    Example:
        >>> clip(torch.tensor([[-3.0, 1.0, 5.0, 9.0]]), height=4, width=8)
        tensor([[0., 1., 5., 4.]])
    """
    limit = boxes.new_tensor([width, height, width, height])
    return boxes.clamp(min=0).minimum(limit)


def pull_inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return boxes with all edges on pixels of the picture, 0 to ``width - 1`` and ``height - 1``.

    The released code calls this clipping: a box outside becomes a sliver of one pixel at the border
    of the picture, so that it still has an area.

    Example:
        >>> pull_inside(torch.tensor([[-9.0, 1.0, -3.0, 9.0]]), height=4, width=8)
        tensor([[0., 1., 1., 3.]])
    """
    last = boxes.new_tensor([width - 1, height - 1])
    low = boxes[..., :2].clamp(min=0).minimum(last - 1)
    return torch.cat([low, boxes[..., 2:].clamp(min=1).minimum(last)], dim=-1)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, limit: int) -> tuple[Tensor, Tensor]:
    """Keep the best boxes of each picture that do not overlap a better one too much.

    Greedy non-maximum suppression, all pictures at once: in each of ``limit`` rounds every picture
    keeps its best remaining box, and drops those that overlap it by more than ``iou_threshold``.
    On CUDA, torchvision's kernel is used if torchvision can be imported.

    Args:
        boxes: Boxes of shape ``(N, A, 4)``.
        scores: Their scores, ``(N, A)``; a box of score ``-inf`` is never kept.
        iou_threshold: Overlap above which the worse of two boxes is dropped.
        limit: Most boxes to keep of each picture.

    Returns:
        Indices of the kept boxes, the best first, ``(N, limit)``; and a mask of valid indices,
        ``(N, limit)``: a picture with fewer boxes has indices 0 at its end.

    Example:
        >>> boxes = torch.tensor([[[0.0, 0, 4, 4], [0, 0, 4, 5], [9, 9, 12, 12]]])
        >>> kept, is_there = nms(boxes, torch.tensor([[0.6, 0.9, 0.2]]), 0.5, limit=3)
        >>> kept[is_there].tolist()
        [1, 2]
    """
    if boxes.is_cuda and _torchvision_imports():
        return torchvision_nms(boxes, scores, iou_threshold, limit)
    n, num_boxes = scores.shape
    kept = torch.zeros(n, limit, dtype=torch.long, device=boxes.device)
    is_there = torch.zeros(n, limit, dtype=torch.bool, device=boxes.device)
    if num_boxes == 0:
        return kept, is_there
    left = scores.clone()
    for place in range(limit):
        best, index = left.max(dim=1)
        kept[:, place], is_there[:, place] = index, best > -torch.inf
        chosen = boxes.gather(1, index.view(n, 1, 1).expand(-1, -1, 4))
        is_lost = pairwise_iou(boxes, chosen).squeeze(2) > iou_threshold
        left.masked_fill_(is_lost, -torch.inf).scatter_(1, index.unsqueeze(1), -torch.inf)
    return kept.masked_fill(~is_there, 0), is_there


@functools.cache
def _torchvision_imports() -> bool:
    # A wheel that does not fit torch may raise any error, such as a RuntimeError.
    try:
        importlib.import_module("torchvision.ops")
    except Exception:
        return False
    return True


def torchvision_nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, limit: int
) -> tuple[Tensor, Tensor]:
    """Compute :func:`nms` with torchvision's kernel."""
    from torchvision.ops import batched_nms

    n, num_boxes = scores.shape
    picture = torch.arange(n, device=boxes.device).repeat_interleave(num_boxes)
    flat = batched_nms(boxes.flatten(0, 1), scores.flatten(), picture, iou_threshold)
    flat = flat[scores.flatten()[flat] > -torch.inf]
    # Boxes are sorted by score: count the better ones of the same picture.
    is_own = picture[flat] == torch.arange(n, device=boxes.device).unsqueeze(1)
    rank = (is_own.cumsum(dim=1) - 1).gather(0, picture[flat].unsqueeze(0)).squeeze(0)
    flat, rank = flat[rank < limit], rank[rank < limit]
    kept = torch.zeros(n, limit, dtype=torch.long, device=boxes.device)
    is_there = torch.zeros(n, limit, dtype=torch.bool, device=boxes.device)
    kept[picture[flat], rank] = flat % max(num_boxes, 1)
    is_there[picture[flat], rank] = True
    return kept, is_there


def roi_align(
    features: Tensor, boxes: Tensor, size: int, *, scale: float, samples: int = 2
) -> Tensor:
    """Interpolate the features under each box into a grid of fixed size.

    He et al., "Mask R-CNN", ICCV 2017. Equal to torchvision's ``roi_align`` with ``aligned=True``:
    each cell of the grid is the mean of ``samples`` x ``samples`` points within it; a point up to
    one feature outside counts as on the border, one further outside as 0. The points lie in rows
    and columns, so this takes one matrix per axis and two products.

    Args:
        features: Feature map of each picture, ``(N, C, H, W)``.
        boxes: Boxes of each picture, in pixels of the picture, ``(N, R, 4)``.
        size: Cells along each side of the grid.
        scale: Features per pixel.
        samples: Points along each side of a cell.

    Returns:
        Tensor of shape ``(N, R, C, size, size)``.

    Example:
        >>> features = torch.arange(4.0).expand(1, 1, 4, 4)  # each has the number of its column
        >>> boxes = torch.tensor([[[0.0, 0.0, 16.0, 16.0]]])
        >>> roi_align(features, boxes, size=2, scale=1 / 4)[0, 0, 0]
        tensor([[0.5000, 2.5000],
                [0.5000, 2.5000]])
    """
    n, channels, height, width = features.shape
    low, high = boxes[..., :2] * scale - 0.5, boxes[..., 2:] * scale - 0.5
    columns = _interpolation(low[..., 0], high[..., 0], size, samples, width)
    rows = _interpolation(low[..., 1], high[..., 1], size, samples, height)
    # For each picture (R * size, W) @ (W, C * H), then for each box (size * C, H) @ (H, size).
    across = columns.flatten(1, 2) @ features.permute(0, 3, 1, 2).flatten(2)
    cells = across.view(n, -1, size * channels, height) @ rows.mT
    cells = cells.view(n, -1, size, channels, size).permute(0, 1, 3, 4, 2)
    return cells


def _interpolation(low: Tensor, high: Tensor, size: int, samples: int, length: int) -> Tensor:
    """Return the weights of the features along one axis in each cell of each box.

    Args:
        low: Start of each box, in features from the middle of the first one, ``(N, R)``.
        high: End of each box.
        size: Number of cells.
        samples: Points that are averaged in a cell.
        length: Features along the axis.

    Returns:
        Weights of shape ``(N, R, size, length)``.
    """
    steps = (torch.arange(size * samples, device=low.device) + 0.5) / (size * samples)
    points = low.unsqueeze(2) + (high - low).unsqueeze(2) * steps
    is_near = (points >= -1) & (points <= length)
    away = points.clamp(0, length - 1).unsqueeze(3) - torch.arange(length, device=low.device)
    weights = (1 - away.abs()).clamp(min=0) * is_near.unsqueeze(3)
    cells: Tensor = weights.view(*low.shape, size, samples, length).mean(dim=3)
    return cells
