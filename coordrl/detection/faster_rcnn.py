"""Faster R-CNN of one or two stages, on any backbone with an attribute ``out_channels``.

The CoordConv paper's detector is the first stage alone: 81,590 parameters without coordinates and
83,838 with them. Coordinates run from -1 to 1 here, as in the authors' released layer; their
detector has a copy of it with coordinates from 0 to 1 (``model_builder_faster_rcnn.py`` in
uber-research/CoordConv).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from coordrl.backbone import ConvBackbone, ConvSpec, Coords, initialize_he_normal
from coordrl.detection.data import Scenes
from coordrl.detection.roi_heads import Detections, RoIHeads, RoILosses, RoISettings
from coordrl.detection.rpn import (
    ProposalLosses,
    Proposals,
    ProposalSettings,
    RegionProposalNetwork,
)

PAPER_BACKBONE = (ConvSpec(32, 5, pool=2), ConvSpec(64, 5, pool=2))
"""The paper's convolutions of the picture; stride 4, the first feature's middle at pixel 8."""


def feature_spacing(specs: Sequence[ConvSpec]) -> tuple[int, float]:
    """Return the stride of a backbone's features and the middle of the first, in pixels.

    Raises:
        ValueError: If a convolution is transposed.

    Example:
        >>> feature_spacing(PAPER_BACKBONE)
        (4, 8.0)
    """
    stride, middle = 1, 0.5
    for spec in specs:
        if spec.transposed:
            raise ValueError("a detector's backbone must not have transposed convolutions")
        # "same" pads an even kernel by one pixel less before than after.
        before = (spec.kernel_size - 1) // 2 if spec.padding == "same" else spec.padding
        middle += stride * ((spec.kernel_size - 1) / 2 - before)
        stride *= spec.stride
        middle += stride * (spec.pool - 1) / 2
        stride *= spec.pool
    return stride, middle


@dataclass(frozen=True)
class Losses:
    """Losses of a step; ``roi`` is None for a detector of one stage."""

    proposals: ProposalLosses
    roi: RoILosses | None

    @property
    def total(self) -> Tensor:
        """Sum of all losses, equally weighted."""
        total = self.proposals.box + self.proposals.score
        return total if self.roi is None else total + self.roi.box + self.roi.label


class FasterRCNN(nn.Module):
    """Proposes boxes and, with a second stage, classifies them.

    Args:
        backbone: From pictures ``(N, 1, H, W)`` to feature maps; has ``out_channels``.
        rpn: First stage.
        roi_heads: Second stage; None for the paper's network.

    Raises:
        ValueError: If the backbone has no ``out_channels``.

    Example:
        >>> detector = build_detector(coords="all")
        >>> sum(parameter.numel() for parameter in detector.parameters())
        83838
    """

    def __init__(
        self, backbone: nn.Module, rpn: RegionProposalNetwork, roi_heads: RoIHeads | None = None
    ) -> None:
        super().__init__()
        if not isinstance(getattr(backbone, "out_channels", None), int):
            raise ValueError("the backbone must have an attribute out_channels, a whole number")
        self.backbone, self.rpn, self.roi_heads = backbone, rpn, roi_heads

    def losses(self, scenes: Scenes, generator: torch.Generator) -> Losses:
        """Return the losses of scenes on the detector's device, sampling boxes with ``generator``.

        Raises:
            ValueError: If the pictures do not have one channel, or are too small for the backbone.
        """
        features = self._features(scenes.images)
        size = _size(scenes.images)
        proposal_losses, moved, logits = self.rpn.losses(
            features, scenes.boxes, scenes.labels >= 0, size, generator
        )
        if self.roi_heads is None:
            return Losses(proposal_losses, None)
        proposals = self.rpn.propose(moved, logits)
        roi = self.roi_heads.losses(features, proposals, scenes.boxes, scenes.labels, generator)
        return Losses(proposal_losses, roi)

    @torch.no_grad()
    def propose(self, images: Tensor) -> Proposals:
        """Return the proposals of the first stage.

        Args:
            images: Ink from 0 to 255, ``(N, 1, H, W)``, uint8.
        """
        return self._propose(self._features(images), _size(images))

    @torch.no_grad()
    def detect(self, images: Tensor) -> Detections:
        """Return the digits found by both stages.

        Args:
            images: Ink from 0 to 255, ``(N, 1, H, W)``, uint8.

        Raises:
            ValueError: If there is no second stage.
        """
        if self.roi_heads is None:
            raise ValueError("this detector has no second stage; ask propose for boxes")
        features = self._features(images)
        size = _size(images)
        return self.roi_heads.detect(features, self._propose(features, size), size)

    def _features(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != 1 or images.dtype != torch.uint8:
            raise ValueError(
                f"the detector expects bytes of shape (N, 1, H, W), got {images.dtype} of"
                f" {tuple(images.shape)}"
            )
        if isinstance(self.backbone, ConvBackbone):
            self.backbone.out_size(*_size(images))
        features: Tensor = self.backbone(images.float() / 255)
        return features

    def _propose(self, features: Tensor, size: tuple[int, int]) -> Proposals:
        transforms, logits = self.rpn(features)
        return self.rpn.propose(self.rpn.move(self.rpn.anchors(features), transforms, size), logits)


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[2], images.shape[3]


def build_detector(
    coords: Coords = "none",
    specs: Sequence[ConvSpec] = PAPER_BACKBONE,
    proposals: ProposalSettings | None = None,
    roi: RoISettings | None = None,
    generator: torch.Generator | None = None,
) -> FasterRCNN:
    """Return an untrained detector, initialized like the authors'.

    Args:
        coords: Where it sees coordinates: nowhere; in the picture; or in all of the paper's places,
            which are the picture, the shared features and the box mover's last layer.
        specs: Convolutions of the backbone.
        proposals: How proposals are trained and selected; as in the released code if None.
        roi: How proposals are classified; None for no second stage.
        generator: Random generator for the initial weights; a new one with seed 0 if None.
    """
    backbone = ConvBackbone(1, specs, "none" if coords == "none" else "first")
    stride, offset = feature_spacing(backbone.specs)
    channels = backbone.out_channels
    rpn = RegionProposalNetwork(
        channels, proposals or ProposalSettings(), coords, stride=stride, offset=offset
    )
    heads = None if roi is None else RoIHeads(channels, roi, stride=stride, offset=offset)
    detector = FasterRCNN(backbone, rpn, heads)
    initialize_he_normal(detector, generator or torch.Generator().manual_seed(0))
    rpn.start_at_anchors()
    if heads is not None:
        heads.start_small()
    return detector
