"""Metrics of boxes: the paper's IOU figures, recall, and COCO's average precision."""

import importlib.util
from collections.abc import Mapping

import torch
from torch import Tensor

from coordrl.config import SettingsError
from coordrl.detection.boxes import area, clip, pairwise_iou, pull_inside
from coordrl.detection.data import Scenes
from coordrl.detection.roi_heads import NUM_CLASSES, Detections
from coordrl.detection.rpn import Proposals

RECALL_IOU = 0.5
"""A digit is found if a box overlaps it by at least this."""
_VISIBLE = 0.5  # fraction of a digit's box inside the picture from which on the digit counts


def proposal_metrics(
    proposals: Proposals, scenes: Scenes, *, clip_truth: bool = False
) -> dict[str, float]:
    """Return the paper's measures of proposals, and their recall.

    - ``best_iou``: mean over a picture's proposals of each one's overlap with the digit that it
      overlaps most; the paper's test IOU, as we read it (``mean_argmax_nms_iou`` in the code).
    - ``mean_iou``: mean overlap of all proposals with all digits (``mean_nms_iou``), low even for
      perfect boxes: with five digits that do not overlap it is at most 0.2.
    - ``recall``: fraction of the digits at least half in the picture that some proposal overlaps
      by 0.5 or more.
    - ``proposals``: mean number of proposals in a picture.

    The first two are means over the pictures that have digits and proposals. Each is NaN if it is a
    mean of nothing.

    Args:
        proposals: A detector's proposals for the scenes.
        scenes: The truth.
        clip_truth: Pull true boxes into the picture before measuring overlaps.

    Example:
        >>> boxes = torch.tensor([[[10.0, 10.0, 30.0, 30.0], [40.0, 40.0, 60.0, 60.0]]])
        >>> images = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
        >>> scenes = Scenes(images, boxes, labels=torch.tensor([[3, 7]]))
        >>> found = Proposals(boxes[:, :1], torch.tensor([[0.9]]), torch.tensor([[True]]))
        >>> proposal_metrics(found, scenes)
        {'best_iou': 1.0, 'mean_iou': 0.5, 'recall': 0.5, 'proposals': 1.0}
    """
    is_digit, is_there = scenes.labels >= 0, proposals.is_there
    height, width = scenes.images.shape[2:]
    truth = pull_inside(scenes.boxes, height, width) if clip_truth else scenes.boxes
    iou = pairwise_iou(proposals.boxes, truth)
    iou = iou.masked_fill(~(is_there.unsqueeze(2) & is_digit.unsqueeze(1)), 0.0)
    num_digits, num_proposals = is_digit.sum(dim=1), is_there.sum(dim=1)
    counts = (num_digits > 0) & (num_proposals > 0)
    best = iou.flatten(2).amax(dim=2).sum(dim=1) if iou.shape[2] else iou.sum(dim=(1, 2))
    visible = area(clip(scenes.boxes, height, width)) >= _VISIBLE * area(scenes.boxes)
    is_found = (iou >= RECALL_IOU).any(dim=1)
    return {
        "best_iou": _mean((best / num_proposals)[counts]),
        "mean_iou": _mean((iou.sum(dim=(1, 2)) / (num_proposals * num_digits))[counts]),
        "recall": _mean(is_found[is_digit & visible].float()),
        "proposals": _mean(num_proposals.float()),
    }


def average_precision(detections: Detections, scenes: Scenes) -> Mapping[str, float]:
    """Return COCO's metrics for digits: ``ap``, ``ap50``, ``ap75`` and ``ar``.

    ``ap`` is the mean over overlaps from 0.50 to 0.95, and ``ar`` the recall over these, with up to
    100 detections per picture. All are NaN if no picture has a digit.

    Args:
        detections: A detector's detections in the scenes.
        scenes: The truth.

    Raises:
        SettingsError: If faster-coco-eval is not installed.
    """
    require_coco()
    from faster_coco_eval import COCO, COCOeval_faster

    if not bool((scenes.labels >= 0).any()):
        return dict.fromkeys(("ap", "ap50", "ap75", "ar"), float("nan"))
    height, width = scenes.images.shape[2:]
    truth = COCO(
        {
            "images": [{"id": i, "height": height, "width": width} for i in range(len(scenes))],
            "categories": [{"id": label, "name": str(label)} for label in range(NUM_CLASSES)],
            "annotations": [
                {**entry, "id": number, "iscrowd": 0}
                for number, entry in enumerate(
                    _entries(scenes.boxes, scenes.labels, scenes.labels >= 0), start=1
                )
            ],
        }
    )
    found = _entries(detections.boxes, detections.labels, detections.is_there, detections.scores)
    if not found:
        return dict.fromkeys(("ap", "ap50", "ap75", "ar"), 0.0)
    evaluation = COCOeval_faster(
        truth, truth.loadRes(found), iouType="bbox", print_function=lambda *_: None
    )
    evaluation.run()
    stats = evaluation.stats
    return {name: float(stats[i]) for name, i in (("ap", 0), ("ap50", 1), ("ap75", 2), ("ar", 8))}


def require_coco() -> None:
    """Raise a SettingsError if the package for average precision is not installed."""
    if importlib.util.find_spec("faster_coco_eval") is None:
        raise SettingsError(
            "average precision needs the package faster-coco-eval: pip install 'coordrl[detect]'"
        )


def _entries(
    boxes: Tensor, labels: Tensor, is_there: Tensor, scores: Tensor | None = None
) -> list[dict[str, object]]:
    """Return boxes as COCO's dictionaries, with corner, width and height."""
    images = torch.arange(len(boxes), device=boxes.device).unsqueeze(1).expand_as(labels)
    sides = boxes[..., 2:] - boxes[..., :2]
    columns: dict[str, list[object]] = {
        "image_id": images[is_there].tolist(),
        "category_id": labels[is_there].tolist(),
        "bbox": torch.cat([boxes[..., :2], sides], dim=-1)[is_there].tolist(),
        "area": sides.prod(dim=-1)[is_there].tolist(),
    }
    if scores is not None:
        columns["score"] = scores[is_there].tolist()
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _mean(values: Tensor) -> float:
    return float(values.mean()) if values.numel() else float("nan")
