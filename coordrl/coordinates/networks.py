"""The networks of the coordinate tasks: the paper's baselines, its CoordConv nets, and ours.

Architectures follow the authors' code (``model_builders.py`` in uber-research/CoordConv), with
parameter counts equal to theirs. All are lists of :class:`~coordrl.backbone.ConvSpec`, so only
``coords`` distinguishes a CoordConv net from a plain one.

With a stride of 2, TensorFlow pads an even picture on the bottom and right only, PyTorch on the top
and left: each is the mirror image of the other. A network whose pictures are mirrored before or
after is therefore the authors' with mirrored kernels, which have the same initial distribution.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coordrl.backbone import Activation, ConvBackbone, ConvSpec, initialize_he_normal, pointwise


def initialize_like_the_authors(network: nn.Module, generator: torch.Generator) -> None:
    """Draw He-normal weights like the authors; then apply ``relative`` and ``lifted`` starts."""
    initialize_he_normal(network, generator)
    for module in network.modules():
        if isinstance(module, CoordConvPainter) and module.relative:
            module.start_relative()
        if isinstance(module, CoordConvRegressor) and module.lifted:
            module.start_lifted()


class CoordConvPainter(nn.Module):
    """The paper's CoordConv net from a place to a picture: five 1x1 convolutions.

    The place is tiled over the canvas, the coordinates are appended, and the same small network
    asks of each pixel: "is this the one?". 7,553 parameters with ``multiplier=1``.

    Whether it also solves places in a corner that it has never seen depends on the initial
    weights. With ``relative``, :func:`initialize_like_the_authors` makes it start as a function of
    the difference between place and pixel; training can move every weight away from that.

    Args:
        canvas_size: Height and width of the picture.
        multiplier: Factor of the number of channels.
        relative: Start with the place's weights equal to minus the coordinates' weights.

    Shape:
        - Input: places ``(N, 2)``.
        - Output: logits ``(N, 1, canvas_size, canvas_size)``.

    Example:
        >>> painter = CoordConvPainter(64)
        >>> sum(parameter.numel() for parameter in painter.parameters())
        7553
    """

    def __init__(self, canvas_size: int, multiplier: int = 1, relative: bool = False) -> None:
        super().__init__()
        self.canvas_size = canvas_size
        self.relative = relative
        channels = [32 * multiplier, 32 * multiplier, 64 * multiplier, 64 * multiplier]
        specs = [ConvSpec(count, 1) for count in channels]
        self.backbone = ConvBackbone(2, [*specs, ConvSpec(1, 1, activation="none")], "first")

    def forward(self, places: Tensor) -> Tensor:
        """Return the logit of every pixel."""
        return self._paint(places, len(self.backbone))

    def start_relative(self) -> None:
        """Make the first layer a function of the difference between place and pixel."""
        with torch.no_grad():
            weight = next(self.parameters())
            weight[:, :2] = -weight[:, 2:]

    def features(self, places: Tensor) -> Tensor:
        """Return the input of the last layer, ``(N, channels, canvas_size, canvas_size)``."""
        return self._paint(places, len(self.backbone) - 1)

    def _paint(self, places: Tensor, depth: int) -> Tensor:
        size = self.canvas_size
        pixels = pointwise(self.backbone, places, size, size, depth=depth)
        return pixels.mT.reshape(len(places), -1, size, size)


class DeconvPainter(nn.Module):
    """The paper's baseline from a place to a picture: transposed convolutions that double it.

    Batch norm and ReLU follow all layers but the last. 46,465 to 1,632,001 parameters.

    Args:
        canvas_size: Height and width of the picture, a power of 2, at least 8; the paper's 64
            takes six layers.
        multiplier: Factor of the number of channels, 1 to 3 in the paper.
        kernel_size: 2 to 4 in the paper.

    Shape:
        - Input: places ``(N, 2)``.
        - Output: logits ``(N, 1, canvas_size, canvas_size)``.

    Raises:
        ValueError: If ``canvas_size`` is not such a power of 2, or ``kernel_size`` is below 2.

    Example:
        >>> painter = DeconvPainter(64, multiplier=2, kernel_size=3)
        >>> sum(parameter.numel() for parameter in painter.parameters())
        409921
    """

    def __init__(self, canvas_size: int, multiplier: int = 1, kernel_size: int = 2) -> None:
        super().__init__()
        layers = canvas_size.bit_length() - 1
        if canvas_size != 2**layers or layers < 3:
            raise ValueError(f"canvas_size must be a power of 2, 8 or more, got {canvas_size}")
        if kernel_size < 2:
            raise ValueError(f"kernel_size must be 2 or more, got {kernel_size}")
        widths = [64 * multiplier] * (layers - 3) + [32 * multiplier] * 2
        # Doubles the size for odd kernels as well.
        padding, output_padding = (kernel_size - 1) // 2, kernel_size % 2

        def doubling(channels: int, **followers: object) -> ConvSpec:
            return ConvSpec(
                channels,
                kernel_size,
                stride=2,
                padding=padding,
                transposed=True,
                output_padding=output_padding,
                **followers,  # type: ignore[arg-type]
            )

        hidden = [doubling(width, norm="batch") for width in widths]
        self.backbone = ConvBackbone(2, [*hidden, doubling(1, activation="none")])

    def forward(self, places: Tensor) -> Tensor:
        """Return the logit of every pixel."""
        return self._paint(places, len(self.backbone))

    def features(self, places: Tensor) -> Tensor:
        """Return the last layer's input, ``(N, channels, canvas_size / 2, canvas_size / 2)``."""
        return self._paint(places, len(self.backbone) - 1)

    def _paint(self, places: Tensor, depth: int) -> Tensor:
        picture = places[:, :, None, None]
        for module in list(self.backbone)[:depth]:
            picture = module(picture)
        return picture.flip(-2, -1)


class CoordConvRenderer(nn.Module):
    """The paper's CoordConv net that renders: find the pixel, then stamp the square around it.

    A :class:`CoordConvPainter`, the softmax over its pixels, and five small convolutions. 11,850
    parameters with ``kernel_size=3``.

    The softmax of an untrained painter is 1/4096 everywhere, and the convolutions after it see
    next to nothing: with the paper's layers training starts only by luck. ``gain`` multiplies the
    softmax; it has no parameters and does not change which functions the network can express.

    Args:
        canvas_size: Height and width of the picture.
        multiplier: Factor of the number of channels of the stamping convolutions.
        kernel_size: Kernel of the stamping convolutions; at least 3 to reach across the square.
        gain: Factor of the softmax, 1 in the paper.
        relative: As in :class:`CoordConvPainter`.

    Shape:
        - Input: places ``(N, 2)``.
        - Output: logits ``(N, 1, canvas_size, canvas_size)``.

    Example:
        >>> renderer = CoordConvRenderer(64)
        >>> sum(parameter.numel() for parameter in renderer.parameters())
        11850
    """

    def __init__(
        self,
        canvas_size: int,
        multiplier: int = 1,
        kernel_size: int = 3,
        gain: float = 1.0,
        relative: bool = False,
    ) -> None:
        super().__init__()
        self.gain = gain
        self.painter = CoordConvPainter(canvas_size, relative=relative)
        widths = [8 * multiplier, 8 * multiplier, 16 * multiplier, 16 * multiplier]
        specs = [ConvSpec(width, kernel_size, padding="same") for width in widths]
        last = ConvSpec(1, kernel_size, padding="same", activation="none")
        self.stamp = ConvBackbone(1, [*specs, last])

    def forward(self, places: Tensor) -> Tensor:
        """Return the logit of every pixel."""
        logits = self.painter(places)
        found = logits.flatten(1).softmax(dim=1).view_as(logits)
        stamped: Tensor = self.stamp(found * self.gain)
        return stamped


class CoordConvRegressor(nn.Module):
    """The paper's CoordConv net from a one-hot picture to its place: 906 parameters.

    Three 1x1 and two 3x3 convolutions and the maximum over all pixels. Without an activation, as
    in the authors' code, the maximum is the only non-linearity: the net computes planes over the
    coordinates, plus a response that must peak at the hot pixel. The authors call it finicky.

    The reason is that the maximum passes its gradient to one pixel. If the untrained net's planes
    rise above its response to the hot pixel, that one pixel is a corner of the canvas, the same for
    all pictures, and only the mean place can be learned. With ``lifted``,
    :func:`initialize_like_the_authors` makes the response start above the planes; training can move
    every weight away from that.

    Args:
        lifted: Start with a response to the hot pixel that is twice as high as the planes.
        relu: Put a ReLU after all convolutions but the last, which the authors say they forgot
            (ML Retrospectives workshop, NeurIPS 2019).

    Shape:
        - Input: pictures ``(N, 1, H, W)``.
        - Output: places ``(N, 2)``.

    Example:
        >>> sum(parameter.numel() for parameter in CoordConvRegressor().parameters())
        906
    """

    def __init__(self, *, lifted: bool = False, relu: bool = False) -> None:
        super().__init__()
        if lifted and relu:
            raise ValueError("lifted is for the net without ReLU, whose planes are flat")
        self.lifted = lifted
        self.relu = relu
        activation: Activation = "relu" if relu else "none"
        pixels = [ConvSpec(8, 1, activation=activation)] * 3
        regions = [
            ConvSpec(8, 3, padding="same", activation=activation),
            ConvSpec(2, 3, padding="same", activation="none"),
        ]
        self.backbone = ConvBackbone(1, [*pixels, *regions], "first")

    def forward(self, images: Tensor) -> Tensor:
        """Return the place in each picture."""
        planes: Tensor = self.backbone(images) if self.relu else self._affine(images)
        return planes.amax(dim=(-2, -1))

    def start_lifted(self) -> None:
        """Raise the response to the hot pixel above the planes, and lower both by its height."""
        layers = [module for module in self.backbone if isinstance(module, nn.Conv2d)]
        picture = torch.zeros(1, 1, 17, 17)
        with torch.no_grad():
            planes = self.backbone(picture)
            heights = planes.amax(dim=(-2, -1)) - planes.amin(dim=(-2, -1))
            picture[..., 8, 8] = 1
            answer = (self.backbone(picture) - planes).amax(dim=(-2, -1))
            factor = (2 * heights / answer).max()
            layers[0].weight[:, :1] *= factor
            last = layers[-1].bias
            assert last is not None  # the backbone has biases
            last -= (factor * answer).squeeze(0)

    def _affine(self, images: Tensor) -> Tensor:
        """Return the backbone's output without ReLU, when it is affine in the picture.

        The part of coordinates and biases is the same for all pictures and computed once. The
        picture's part is linear: its 1x1 convolutions are one matrix, which is merged into the 3x3
        convolution after them.
        """
        shared: Tensor = self.backbone(images.new_zeros(1, *images.shape[1:]))
        first, second, third, fourth, fifth = (
            module.weight for module in self.backbone if isinstance(module, nn.Conv2d)
        )
        of_image = first[:, :1, 0, 0]
        pixels = third[..., 0, 0] @ second[..., 0, 0] @ of_image
        kernel = torch.einsum("ochw,ci->oihw", fourth, pixels)
        response = F.conv2d(F.conv2d(images, kernel, padding=1), fifth, padding=1)
        return shared + response


class ConvRegressor(nn.Module):
    """The paper's plain net for the uniform split: pooled convolutions and a dense layer.

    72,850 parameters with ``multiplier=1`` on the 64x64 canvas, most of them in the dense layer,
    which has weights of its own for each place.

    Args:
        canvas_size: Height and width of the picture, a multiple of 8.
        multiplier: Factor of the number of channels.
        kernel_size: Kernel of the convolutions.

    Shape:
        - Input: pictures ``(N, 1, canvas_size, canvas_size)``.
        - Output: places ``(N, 2)``.

    Example:
        >>> sum(parameter.numel() for parameter in ConvRegressor(64).parameters())
        72850
    """

    def __init__(self, canvas_size: int, multiplier: int = 1, kernel_size: int = 3) -> None:
        super().__init__()
        width = 16 * multiplier
        pooled = ConvSpec(width, kernel_size, padding="same", pool=2)
        self.backbone = ConvBackbone(
            1, [pooled] * 3 + [ConvSpec(width, kernel_size, padding="same")]
        )
        height, width_out = self.backbone.out_size(canvas_size, canvas_size)
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(width * height * width_out, 64),
            nn.ReLU(),
            nn.Linear(64, 2),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the place in each picture."""
        places: Tensor = self.head(self.backbone(images))
        return places


class StridedConvRegressor(nn.Module):
    """The paper's plain net for the quadrant split: strided convolutions and a global mean.

    12,914 parameters with ``multiplier=1``.

    Args:
        multiplier: Factor of the number of channels.
        canvas_size: Height and width of the pictures.

    Raises:
        ValueError: If the canvas is not a multiple of 32: five convolutions halve it.

    Shape:
        - Input: pictures ``(N, 1, H, W)``, H and W multiples of 32.
        - Output: places ``(N, 2)``, not negative.

    Example:
        >>> sum(parameter.numel() for parameter in StridedConvRegressor().parameters())
        12914
    """

    def __init__(self, multiplier: int = 1, canvas_size: int = 64) -> None:
        super().__init__()
        if canvas_size % 32 != 0:
            raise ValueError(f"canvas_size must be a multiple of 32, got {canvas_size}")
        width = 16 * multiplier
        first = [ConvSpec(width, 5, 2, 2), ConvSpec(width, 1)]
        rest: Sequence[ConvSpec] = [
            ConvSpec(width, 3, padding="same"),
            ConvSpec(width, 3, 2, 1),
            ConvSpec(width, 3, 2, 1, norm="batch"),
            ConvSpec(width, 3, 2, 1),
            ConvSpec(width, 1),
            ConvSpec(width, 3, 2, 1),
            ConvSpec(2, 3, padding="same"),
        ]
        self.backbone = nn.Sequential(
            ConvBackbone(1, first), nn.BatchNorm2d(width), ConvBackbone(width, rest)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the place in each picture."""
        places: Tensor = self.backbone(images.flip(-2, -1)).mean(dim=(-2, -1))
        return places
