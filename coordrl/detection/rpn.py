"""The region proposal network of the CoordConv paper: where are digits?

Ren et al., "Faster R-CNN", NeurIPS 2015, in the small form of Liu et al. 2018, whose numbers are
the defaults here: nine anchors per feature, six positive and six negative boxes per picture to
train on, ten proposals. Two peculiarities are kept: boxes are matched to the truth after the
network has moved them, not at their anchors; and the slope of the transforms' loss jumps at 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coordrl.backbone import ConvBackbone, ConvSpec, Coords
from coordrl.config import take_types
from coordrl.detection.boxes import decode, encode, nms, pairwise_iou, pull_inside

AnchorLayout = Literal["grid", "released"]

ANCHOR_SIZES = (
    *((15, 15), (20, 20), (25, 25)),
    *((15, 20), (20, 25), (20, 15), (25, 20), (15, 25), (25, 15)),
)
"""Height and width of the paper's anchors, in pixels."""


@dataclass(frozen=True)
class ProposalSettings:
    """How proposals are trained and selected; the defaults are the released code's.

    Raises:
        ValueError: If a number is out of range.
    """

    anchor_layout: AnchorLayout = "grid"
    """Places of the anchors: see :func:`anchor_boxes`."""
    clip: bool = False
    """Pull moved boxes and, for measuring overlaps, true ones into the picture. Without it, boxes
    that extend beyond the picture are never trained as negatives."""
    samples: int = 12
    """Boxes of a picture to train on in one step; half of them positive."""
    positive_iou: float = 0.5
    """A box inside the picture with more overlap than this is positive."""
    negative_iou: float = 0.1
    """A box inside the picture with less overlap than this with all digits is negative."""
    nms_iou: float = 0.8
    """Of two proposals that overlap by more than this, the worse is dropped."""
    proposals: int = 10
    """Most proposals of a picture."""

    def __post_init__(self) -> None:
        take_types(self)
        if self.samples < 2 or self.proposals < 1:
            raise ValueError(
                "there must be at least 2 samples and 1 proposal, got"
                f" {self.samples} and {self.proposals}"
            )
        for name in ("positive_iou", "negative_iou", "nms_iou"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")


def anchor_boxes(
    height: int,
    width: int,
    sizes: Sequence[tuple[int, int]] = ANCHOR_SIZES,
    *,
    stride: int = 4,
    offset: float = 8,
    layout: AnchorLayout = "grid",
) -> Tensor:
    """Return the anchors of a feature map, feature by feature, row by row.

    In the layout ``"grid"`` every feature has an anchor of each size around its own middle, as in
    Faster R-CNN. ``"released"`` is what the authors' code computes (``make_anchors_mnist`` and
    ``reshape_box_features`` in uber-research/CoordConv): it writes the four numbers of a feature's
    nine anchors number by number, but reads them back anchor by anchor. Of the resulting nine
    anchors, one lies around its feature, with the feature's column as its height and width; four
    lie on the diagonal of the picture; four are the same box for every feature. To move such an
    anchor to a digit, a network must know where in the picture the digit is, and coordinates tell
    it.

    Args:
        height: Rows of the feature map.
        width: Columns of the feature map.
        sizes: Height and width of the anchors, in pixels.
        stride: Pixels between the middles of two features.
        offset: Middle of the first feature, in pixels.
        layout: Places of the anchors.

    Returns:
        Boxes of shape ``(height * width * len(sizes), 4)``.

    Example:
        >>> anchor_boxes(13, 13)[0].tolist()
        [0.5, 0.5, 15.5, 15.5]
    """
    rows, columns = (
        offset + stride * torch.arange(n, dtype=torch.float32) for n in (height, width)
    )
    size = torch.tensor(sizes, dtype=torch.float32)
    numbers = torch.stack(
        [
            rows.view(-1, 1, 1).expand(-1, width, len(sizes)),
            columns.view(1, -1, 1).expand(height, -1, len(sizes)),
            size[:, 0].expand(height, width, -1),
            size[:, 1].expand(height, width, -1),
        ],
        dim=2,
    )  # (height, width, 4, anchors)
    if layout == "grid":
        numbers = numbers.mT
    row, column, tall, wide = numbers.reshape(-1, 4).unbind(dim=1)
    return torch.stack(
        [column - wide / 2, row - tall / 2, column + wide / 2, row + tall / 2], dim=1
    )


@dataclass(frozen=True)
class Sample:
    """Boxes to train on in one step; tensors may have unfilled places.

    Attributes:
        positive: Index of a box, ``(N, P)``.
        truth: Index of the digit that it is matched to, ``(N, P)``.
        has_positive: Which of these places are filled, ``(N, P)``.
        negative: Index of a box, ``(N, Q)``.
        has_negative: Which of these places are filled, ``(N, Q)``.
    """

    positive: Tensor
    truth: Tensor
    has_positive: Tensor
    negative: Tensor
    has_negative: Tensor


def sample_boxes(
    moved: Tensor,
    truth: Tensor,
    is_digit: Tensor,
    settings: ProposalSettings,
    size: tuple[int, int],
    generator: torch.Generator,
) -> Sample:
    """Sample the boxes of each picture to train on, like the released sampler.

    Pairs of a box and a digit are positive if the box is the digit's best, wherever it is, or
    overlaps it by more than ``positive_iou`` and lies within the picture. Boxes are negative if
    they lie within the picture, overlap every digit by less than ``negative_iou`` and are not the
    best of any digit; in a picture without such boxes, all boxes in no positive pair are negative.
    Half of the samples are drawn from each kind, without replacement.

    The best box of a digit that no box overlaps is the first box, as in the released code: such
    digits, which the crop has cut off, are matched to the first anchor. If there are fewer
    negatives than places, the released code takes none; here all of them are taken.

    Args:
        moved: Boxes after the network has moved them, ``(N, A, 4)``.
        truth: Boxes of digits, ``(N, M, 4)``.
        is_digit: Which of these are valid, ``(N, M)``.
        settings: Thresholds and numbers.
        size: Height and width of the picture.
        generator: Random generator for sampling.

    Example:
        >>> moved = torch.tensor([[[10.0, 10.0, 30.0, 30.0], [40.0, 40.0, 60.0, 60.0]]])
        >>> truth, is_digit = moved[:, :1] + 1, torch.tensor([[True]])
        >>> random = torch.Generator().manual_seed(0)
        >>> sample = sample_boxes(moved, truth, is_digit, ProposalSettings(), (64, 64), random)
        >>> sample.positive[sample.has_positive], sample.negative[sample.has_negative]
        (tensor([0]), tensor([1]))
    """
    n, num_boxes, num_digits = len(moved), moved.shape[1], truth.shape[1]
    iou = pairwise_iou(moved, truth).masked_fill(~is_digit.unsqueeze(1), -1)
    height, width = size
    last = moved.new_tensor([width - 1, height - 1])  # the released code's inclusive bounds
    is_inside = ((moved[..., :2] >= 0) & (moved[..., 2:] <= last)).all(dim=2)

    is_best = torch.zeros_like(iou, dtype=torch.bool)
    if num_digits:
        is_best.scatter_(1, iou.argmax(dim=1, keepdim=True), True)
        is_best &= is_digit.unsqueeze(1)
    is_pair = is_best | ((iou > settings.positive_iou) & is_inside.unsqueeze(2))
    is_far = (iou < settings.negative_iou).all(dim=2)
    is_negative = is_far & is_inside & ~is_best.any(dim=2)
    has_none = ~is_negative.any(dim=1, keepdim=True)
    is_negative |= has_none & ~is_pair.any(dim=2)

    num_positive = settings.samples // 2
    pair, has_positive = draw(is_pair.view(n, num_boxes * num_digits), num_positive, generator)
    negative, has_negative = draw(is_negative, settings.samples - num_positive, generator)
    return Sample(
        positive=pair // max(num_digits, 1),
        truth=pair % max(num_digits, 1),
        has_positive=has_positive,
        negative=negative,
        has_negative=has_negative,
    )


def draw(is_candidate: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw up to ``count`` candidates of each row; return indices and a mask of valid ones."""
    n, num = is_candidate.shape
    if num == 0:
        nothing = is_candidate.new_zeros(n, count)
        return nothing.long(), nothing
    # The random numbers are drawn on the generator's device, so that all devices see the same.
    keys = torch.rand(is_candidate.shape, generator=generator).to(is_candidate.device)
    keys, indices = keys.masked_fill(~is_candidate, -1).topk(min(count, num), dim=1)
    return indices, keys >= 0


def transform_loss(transforms: Tensor, targets: Tensor) -> Tensor:
    """Return the paper's loss of transforms: the sum of t² or, where |t| > 1, of |t|.

    It is continuous, but its slope falls from 2 to 1 at |t| = 1; the usual smooth L1 has t²/2 and
    |t| - 1/2.

    Args:
        transforms: Output of the network, ``(..., 4)``.
        targets: Targets, of the same shape.

    Returns:
        Losses of shape ``(...)``.

    Example:
        >>> transform_loss(torch.tensor([[0.5, -2.0, 0.0, 0.0]]), torch.zeros(1, 4))
        tensor([2.2500])
    """
    off = (transforms - targets).abs()
    return torch.where(off > 1, off, off.square()).sum(dim=-1)


def mean_of(values: Tensor, is_there: Tensor) -> Tensor:
    """Return the mean over the valid values of each picture, then over the pictures.

    Pictures without valid values count as 0. So a batch has the mean of its single pictures.

    Args:
        values: Numbers of shape ``(N, P)``.
        is_there: Which of them are valid, ``(N, P)``.
    """
    count = is_there.sum(dim=1).clamp(min=1)
    means: Tensor = torch.where(is_there, values, 0.0).sum(dim=1) / count
    return means.mean()


@dataclass(frozen=True)
class Proposals:
    """Proposed boxes, most probable first.

    Attributes:
        boxes: Boxes of shape ``(N, P, 4)``.
        scores: Probability of a digit, ``(N, P)``.
        is_there: Which of the places are filled, ``(N, P)``.
    """

    boxes: Tensor
    scores: Tensor
    is_there: Tensor


@dataclass(frozen=True)
class ProposalLosses:
    """Losses of the region proposal network in a step.

    Attributes:
        box: Loss of the transforms of positive boxes.
        score: Cross-entropy of the sampled boxes.
        iou: Mean overlap of the sampled positive pairs: the paper's training IOU.
    """

    box: Tensor
    score: Tensor
    iou: Tensor


class RegionProposalNetwork(nn.Module):
    """Scores and moves the anchors of a feature map.

    The paper's CoordConv version sees coordinates in three places, two of which are here: before
    the shared convolution and before the box mover's last. The third is at the picture.

    Args:
        in_channels: Channels of the feature map.
        settings: How proposals are trained and selected.
        coords: ``"all"`` for the paper's places; with ``"first"``, which is for the backbone only,
            and ``"none"``, this network sees no coordinates.
        stride: Pixels between the middles of two features.
        offset: Middle of the first feature, in pixels.

    Raises:
        ValueError: If ``offset`` is 0 or less and anchors are those of the released code, which
            have it as their height and width.

    Shape:
        - Input: feature map ``(N, in_channels, H, W)``.
        - Output: transforms ``(N, A, 4)`` and logits (digit, nothing) ``(N, A, 2)``, with
          ``A = H * W * 9``.
    """

    def __init__(
        self,
        in_channels: int,
        settings: ProposalSettings,
        coords: Coords = "none",
        *,
        stride: int = 4,
        offset: float = 8,
    ) -> None:
        super().__init__()
        if settings.anchor_layout == "released" and offset <= 0:
            raise ValueError(
                "released anchors are as wide as their feature's place in the picture, and the"
                f" first feature's is {offset:g}; pad less, or take anchors in a grid"
            )
        self.settings, self.stride, self.offset = settings, stride, offset
        own: Coords = "first" if coords == "all" else "none"
        same = ConvSpec(32, 3, padding="same")
        self.shared = ConvBackbone(in_channels, (same,), own)
        self.mover = nn.Sequential(
            ConvBackbone(32, (same,)),
            ConvBackbone(32, (ConvSpec(4 * len(ANCHOR_SIZES), 1, activation="none"),), own),
        )
        self.scorer = ConvBackbone(32, (ConvSpec(2 * len(ANCHOR_SIZES), 1, activation="none"),))

    def start_at_anchors(self) -> None:
        """Make the untrained network leave every anchor where it is, as in the paper."""
        for parameter in self.mover[1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return transforms and logits of all anchors."""
        shared = self.shared(features)
        transforms, logits = self.mover(shared), self.scorer(shared)
        return _by_anchor(transforms, 4), _by_anchor(logits, 2)

    def anchors(self, features: Tensor) -> Tensor:
        """Return the anchors of a feature map, ``(A, 4)``, on its device."""
        return anchor_boxes(
            *features.shape[2:],
            stride=self.stride,
            offset=self.offset,
            layout=self.settings.anchor_layout,
        ).to(features.device)

    def move(self, anchors: Tensor, transforms: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the anchors moved and, with ``clip``, pulled into a picture of ``size``."""
        moved = decode(anchors, transforms)
        return pull_inside(moved, *size) if self.settings.clip else moved

    @torch.no_grad()
    def propose(self, moved: Tensor, logits: Tensor) -> Proposals:
        """Return the best moved anchors after non-maximum suppression."""
        scores = logits.softmax(dim=2)[..., 0]
        kept, is_there = nms(moved, scores, self.settings.nms_iou, self.settings.proposals)
        return Proposals(pick(moved, kept), scores.gather(1, kept), is_there)

    def losses(
        self,
        features: Tensor,
        truth: Tensor,
        is_digit: Tensor,
        size: tuple[int, int],
        generator: torch.Generator,
    ) -> tuple[ProposalLosses, Tensor, Tensor]:
        """Return losses, and the moved anchors with their logits, of pictures with known digits.

        Args:
            features: Feature map of the pictures.
            truth: Boxes of digits, ``(N, M, 4)``.
            is_digit: Which of them are valid, ``(N, M)``.
            size: Height and width of the pictures.
            generator: Random generator for sampling.
        """
        transforms, logits = self(features)
        anchors = self.anchors(features).expand_as(transforms)
        with torch.no_grad():
            moved, target = self.move(anchors, transforms, size), truth
            if self.settings.clip:
                target = pull_inside(truth, *size)
            sample = sample_boxes(moved, target, is_digit, self.settings, size, generator)
        start = pick(anchors, sample.positive)
        # A box in an unfilled place may have no area, whose logarithm is not finite.
        matched = torch.where(sample.has_positive.unsqueeze(2), pick(truth, sample.truth), start)
        box = transform_loss(pick(transforms, sample.positive), encode(start, matched))
        chosen = torch.cat([sample.positive, sample.negative], dim=1)
        is_nothing = torch.zeros_like(chosen)
        is_nothing[:, sample.positive.shape[1] :] = 1
        score = F.cross_entropy(pick(logits, chosen).mT, is_nothing, reduction="none")
        with torch.no_grad():
            overlap = paired_iou(pick(moved, sample.positive), pick(target, sample.truth))
        losses = ProposalLosses(
            box=mean_of(box, sample.has_positive),
            score=mean_of(score, torch.cat([sample.has_positive, sample.has_negative], dim=1)),
            iou=mean_of(overlap, sample.has_positive),
        )
        return losses, moved, logits


def paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the overlap of each box with its counterpart; ``(..., 4)`` to ``(...)``."""
    return pairwise_iou(boxes.unsqueeze(-2), others.unsqueeze(-2)).flatten(-3)


def _by_anchor(maps: Tensor, numbers: int) -> Tensor:
    """Turn ``(N, anchors * numbers, H, W)`` into ``(N, H * W * anchors, numbers)``, float32."""
    return maps.float().permute(0, 2, 3, 1).reshape(len(maps), -1, numbers)


def pick(values: Tensor, indices: Tensor) -> Tensor:
    """Return ``values[n, indices[n, p]]``; ``(N, A, K)`` and ``(N, P)`` to ``(N, P, K)``."""
    if values.shape[1] == 0:
        return values.new_zeros(*indices.shape, values.shape[2])
    return values.gather(1, indices.unsqueeze(2).expand(-1, -1, values.shape[2]))
