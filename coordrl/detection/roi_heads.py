"""The second stage of Faster R-CNN: which digit is in a proposal, and where exactly?

Ren et al., "Faster R-CNN", NeurIPS 2015, with RoIAlign of He et al., ICCV 2017. The CoordConv paper
has no second stage; this is the usual one, in a size that suits digits.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coordrl.config import require_at_least, take_types
from coordrl.detection.boxes import area, clip, decode, encode, nms, pairwise_iou, roi_align
from coordrl.detection.rpn import Proposals, draw, mean_of, pick, transform_loss

NUM_CLASSES = 10
_NOTHING = NUM_CLASSES
# Transforms of a second stage are small; scaled up, their loss weighs as much as the classes'.
_TRANSFORM_SCALE = (10.0, 10.0, 5.0, 5.0)


@dataclass(frozen=True)
class RoISettings:
    """How proposals are classified.

    Raises:
        ValueError: If a number is out of range.
    """

    grid: int = 7
    """Cells along each side of the grid that RoIAlign reads a proposal into."""
    hidden: int = 256
    """Width of the two hidden layers."""
    samples: int = 32
    """Proposals of a picture to train on in one step; at most half of them positive."""
    positive_iou: float = 0.5
    """A proposal with at least this overlap with a digit is positive, any other negative."""
    min_score: float = 0.05
    """Detections with a lower probability are dropped."""
    nms_iou: float = 0.5
    """Of two detections of one class that overlap by more than this, the worse is dropped."""
    detections: int = 20
    """Most detections in a picture."""

    def __post_init__(self) -> None:
        take_types(self)
        require_at_least(1, self, "grid", "hidden", "detections")
        require_at_least(2, self, "samples")
        for name in ("positive_iou", "min_score", "nms_iou"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")


@dataclass(frozen=True)
class Detections:
    """Digits found, most probable first.

    Attributes:
        boxes: Boxes of shape ``(N, D, 4)``, within the picture.
        scores: Probabilities, ``(N, D)``.
        labels: Digits from 0 to 9, ``(N, D)``.
        is_there: Which of the places are filled, ``(N, D)``.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    is_there: Tensor


@dataclass(frozen=True)
class RoILosses:
    """Losses of the second stage in a step: of the transforms and of the classes."""

    box: Tensor
    label: Tensor


class RoIHeads(nn.Module):
    """Classifies proposals, and moves them by a transform for each class.

    Args:
        in_channels: Channels of the feature map.
        settings: How proposals are classified.
        stride: Pixels between the middles of two features.
        offset: Middle of the first feature, in pixels.
    """

    def __init__(
        self, in_channels: int, settings: RoISettings, *, stride: float = 4, offset: float = 2
    ) -> None:
        super().__init__()
        self.settings, self.stride, self.offset = settings, stride, offset
        self.layers = nn.Sequential(
            nn.Linear(in_channels * settings.grid**2, settings.hidden),
            nn.ReLU(),
            nn.Linear(settings.hidden, settings.hidden),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(settings.hidden, NUM_CLASSES + 1)
        self.mover = nn.Linear(settings.hidden, 4 * NUM_CLASSES)
        self.register_buffer("transform_scale", torch.tensor(_TRANSFORM_SCALE), persistent=False)
        self.transform_scale: Tensor

    def start_small(self) -> None:
        """Make the untrained heads predict equal probabilities for all classes and move nothing."""
        for layer in (self.classifier, self.mover):
            nn.init.zeros_(layer.weight)

    def forward(self, features: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits ``(N, R, 11)``, the last for no digit, and transforms.

        Args:
            features: Feature map ``(N, in_channels, H, W)``.
            boxes: Boxes of shape ``(N, R, 4)``.

        Returns:
            Logits, and scaled transforms for each class, ``(N, R, 10, 4)``.
        """
        # roi_align assumes that the first feature's middle is half a stride from the corner.
        shifted = boxes - (self.offset - self.stride / 2)
        cells = roi_align(features, shifted, self.settings.grid, scale=1 / self.stride)
        hidden = self.layers(cells.flatten(2))
        # Not in autocast's 16 bits: boxes need the precision of float32.
        logits, transforms = self.classifier(hidden).float(), self.mover(hidden).float()
        return logits, transforms.unflatten(2, (NUM_CLASSES, 4))

    def losses(
        self,
        features: Tensor,
        proposals: Proposals,
        truth: Tensor,
        labels: Tensor,
        generator: torch.Generator,
    ) -> RoILosses:
        """Return the losses of pictures with known digits.

        Args:
            features: Feature map of the pictures.
            proposals: Proposals of the first stage; the true boxes are added to them.
            truth: Boxes of digits, ``(N, M, 4)``.
            labels: Digits from 0 to 9, or -1 for no digit, ``(N, M)``.
            generator: Random generator for sampling.
        """
        is_digit = labels >= 0
        boxes = torch.cat([proposals.boxes, truth], dim=1)
        is_there = torch.cat([proposals.is_there, is_digit], dim=1) & (area(boxes) > 0)
        iou = pairwise_iou(boxes, truth).masked_fill(~is_digit.unsqueeze(1), -1)
        # A column of overlap -1 stands for "no digit", in pictures without digits.
        none = iou.new_full((*iou.shape[:2], 1), -1.0)
        overlap, match = torch.cat([none, iou], dim=2).max(dim=2)
        is_positive = is_there & (overlap >= self.settings.positive_iou)
        positive, has_positive = draw(is_positive, self.settings.samples // 2, generator)
        is_negative = is_there & (overlap < self.settings.positive_iou)
        num_negative = self.settings.samples - self.settings.samples // 2
        negative, has_negative = draw(is_negative, num_negative, generator)

        chosen = torch.cat([positive, negative], dim=1)
        has_chosen = torch.cat([has_positive, has_negative], dim=1)
        start = pick(boxes, chosen)
        # Unfilled places may hold boxes without area; replace them by any box.
        start = torch.where(has_chosen.unsqueeze(2), start, start.new_tensor([0, 0, 1, 1]))
        logits, transforms = self(features, start)
        digit = (match.gather(1, chosen) - 1).clamp(min=0)
        shows = labels.gather(1, digit) if labels.shape[1] else torch.zeros_like(chosen)
        num_positive = positive.shape[1]
        target = shows.clone()
        target[:, num_positive:] = _NOTHING
        target[:, :num_positive][~has_positive] = _NOTHING
        label = F.cross_entropy(logits.mT, target, reduction="none")

        own, shows = start[:, :num_positive], shows[:, :num_positive].clamp(min=0)
        matched = pick(truth, digit[:, :num_positive])
        matched = torch.where(has_positive.unsqueeze(2), matched, own)
        moves = transforms[:, :num_positive].gather(2, shows[..., None, None].expand(-1, -1, 1, 4))
        box = transform_loss(moves.squeeze(2), encode(own, matched) * self.transform_scale)
        return RoILosses(mean_of(box, has_positive), mean_of(label, has_chosen))

    @torch.no_grad()
    def detect(self, features: Tensor, proposals: Proposals, size: tuple[int, int]) -> Detections:
        """Return the digits found in proposals, for pictures of ``size`` (height, width)."""
        logits, transforms = self(features, proposals.boxes)
        n, num_proposals = proposals.scores.shape
        scores = logits.softmax(dim=2)[..., :NUM_CLASSES]
        boxes = decode(proposals.boxes.unsqueeze(2), transforms / self.transform_scale)
        boxes = clip(boxes, *size).flatten(1, 2)
        labels = torch.arange(NUM_CLASSES, device=boxes.device).repeat(n, num_proposals)
        is_good = (scores.flatten(1) >= self.settings.min_score) & (area(boxes) > 0)
        is_good &= proposals.is_there.repeat_interleave(NUM_CLASSES, dim=1)
        rank = scores.flatten(1).masked_fill(~is_good, -torch.inf)
        # Shifted far apart, boxes of different classes do not suppress each other.
        apart = boxes + (labels * 2 * max(size)).unsqueeze(2)
        kept, is_there = nms(apart, rank, self.settings.nms_iou, self.settings.detections)
        return Detections(
            pick(boxes, kept), scores.flatten(1).gather(1, kept), labels.gather(1, kept), is_there
        )
