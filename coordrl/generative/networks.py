"""Generator, discriminator and encoder, with and without coordinates.

Liu et al., "An intriguing failing of convolutional neural networks and the CoordConv solution",
NeurIPS 2018; architectures follow the authors' code (``CoordConvGAN`` in ``model_builders.py`` of
uber-research/CoordConv), with parameter counts equal to theirs. All are lists of
:class:`~coordrl.backbone.ConvSpec`.

TensorFlow pads strided convolutions on the bottom and right, PyTorch on the top and left. So the
networks are mirror images of the authors', and so are the pictures that they learn, which are as
likely as unmirrored ones.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from coordrl.backbone import Activation, ConvBackbone, ConvSpec, Coords, Norm
from coordrl.layers import CoordConv2d


class CoordConvGenerator(nn.Module):
    """The paper's CoordConv generator: the same small network is applied to each pixel of a canvas.

    The latent vector is tiled over the canvas and given coordinates; 1x1 convolutions follow, and
    two 3x3 ones that see neighbors. 444,931 parameters with the defaults. Nothing is actually
    tiled, see :func:`convolve_tiled`.

    The authors feed the discriminator the output of the last convolution, and apply tanh only to
    show pictures: ``tanh=False``.

    Args:
        size: Height and width of the pictures.
        latent: Length of the latent vector.
        channels: Channels of the narrowest layers; the widest has eight times as many.
        tanh: End in tanh; without it pictures may leave [-1, 1].

    Shape:
        - Input: latent vectors ``(N, latent)``.
        - Output: pictures ``(N, 3, size, size)``.

    Example:
        >>> sum(parameter.numel() for parameter in CoordConvGenerator().parameters())
        444931
    """

    def __init__(
        self, size: int = 64, latent: int = 256, channels: int = 64, tanh: bool = True
    ) -> None:
        super().__init__()
        self.size = size
        self.latent = latent
        widths = [8 * channels, 4 * channels, 4 * channels, 2 * channels, channels]
        pixels = [ConvSpec(width, 1) for width in widths]
        around = ConvSpec(channels, 3, padding="same")
        last = ConvSpec(3, 1, activation="tanh" if tanh else "none")
        self.backbone = ConvBackbone(latent, [*pixels, around, around, last], "first")

    def forward(self, latents: Tensor) -> Tensor:
        """Return a picture for each latent vector."""
        _check_latents(latents, self.latent)
        first, *others = self.backbone
        assert isinstance(first, CoordConv2d)
        pictures = convolve_tiled(first, latents, self.size, self.size)
        for module in others:
            pictures = module(pictures)
        return pictures


def convolve_tiled(layer: CoordConv2d, vectors: Tensor, height: int, width: int) -> Tensor:
    """Return the output of a 1x1 CoordConv for vectors tiled over a canvas.

    Equal to ``layer(vectors[:, :, None, None].expand(-1, -1, height, width))``, but each vector is
    multiplied once instead of at each pixel, and the coordinates' part, which all vectors share, is
    added: one matrix product in place of a convolution over the canvas. As in the layer itself,
    autocast leaves the coordinates' part in float32, and the sum is rounded once.

    Args:
        layer: Layer of stride 1, without padding and groups.
        vectors: ``(N, in_channels)``.
        height: Rows of the canvas.
        width: Columns of the canvas.

    Returns:
        Tensor of shape ``(N, out_channels, height, width)``.

    Example:
        >>> import torch
        >>> layer, vectors = CoordConv2d(2, 4, 1), torch.tensor([[0.5, -1.0], [2.0, 0.0]])
        >>> tiled = vectors[:, :, None, None].expand(-1, -1, 5, 6)
        >>> torch.allclose(convolve_tiled(layer, vectors, 5, 6), layer(tiled), atol=1e-5)
        True
    """
    weight, coord_weight = layer.split_weight()
    grid = layer.coordinate_grid(height, width, device=vectors.device, dtype=vectors.dtype)
    # Products and sums instead of a convolution, which autocast would round to 16 bits.
    shared = (coord_weight * grid).sum(dim=1)
    if layer.bias is not None:
        shared = shared + layer.bias[:, None, None]
    own = F.linear(vectors, weight.flatten(1))
    return (own[:, :, None, None] + shared).to(own.dtype)


class DeconvGenerator(nn.Module):
    """The paper's baseline: a dense layer to 4x4, and transposed convolutions that double it.

    Batch norm and ReLU follow all layers but the last, which ends in tanh. 6,413,315 parameters
    with the defaults.

    Args:
        size: Height and width of the pictures, a multiple of 16.
        latent: Length of the latent vector.
        channels: Channels of the last hidden layer; the first has eight times as many.
        tanh: End in tanh; without it pictures may leave [-1, 1].

    Shape:
        - Input: latent vectors ``(N, latent)``.
        - Output: pictures ``(N, 3, size, size)``.

    Raises:
        ValueError: If the size is not a multiple of 16.

    Example:
        >>> sum(parameter.numel() for parameter in DeconvGenerator().parameters())
        6413315
    """

    def __init__(
        self, size: int = 64, latent: int = 256, channels: int = 64, tanh: bool = True
    ) -> None:
        super().__init__()
        self.start = _sixteenth(size)
        self.latent = latent
        self.dense = nn.Linear(latent, 8 * channels * self.start**2)
        self.seed = nn.Sequential(nn.BatchNorm2d(8 * channels), nn.ReLU())
        doublings = [_doubling(width * channels, norm="batch") for width in (4, 2, 1)]
        last = _doubling(3, activation="tanh" if tanh else "none")
        self.doublings = ConvBackbone(8 * channels, [*doublings, last])

    def forward(self, latents: Tensor) -> Tensor:
        """Return a picture for each latent vector."""
        _check_latents(latents, self.latent)
        seeds = self.dense(latents).view(len(latents), -1, self.start, self.start)
        pictures: Tensor = self.doublings(self.seed(seeds))
        return pictures


class Discriminator(nn.Module):
    """The paper's discriminator: four strided convolutions and a dense layer.

    Leaky ReLU follows each convolution, and batch norm stands before it except in the first.
    4,316,545 parameters with the defaults, 3,200 more with coordinates at the input. With more than
    one output it is the encoder of the autoencoder.

    Args:
        size: Height and width of the pictures, a multiple of 16.
        channels: Channels of the first layer; the last has eight times as many.
        coords: ``"first"`` adds coordinates to the picture, as in the paper.
        norm: Norm after all convolutions but the first. Must be ``"none"`` if the gradient of each
            picture is penalized: batch norm mixes the pictures.
        outputs: Numbers to return for each picture.

    Shape:
        - Input: pictures ``(N, 3, size, size)``.
        - Output: ``(N, outputs)``; logits of being real.

    Raises:
        ValueError: If the size is not a multiple of 16; in ``forward``, if pictures have another.

    Example:
        >>> sum(parameter.numel() for parameter in Discriminator().parameters())
        4316545
    """

    def __init__(
        self,
        size: int = 64,
        channels: int = 64,
        coords: Coords = "none",
        norm: Norm = "batch",
        outputs: int = 1,
    ) -> None:
        super().__init__()
        self.size = size
        end = _sixteenth(size)
        halvings = [
            ConvSpec(
                width * channels,
                5,
                stride=2,
                padding=2,
                norm=norm if width > 1 else "none",
                activation="leaky_relu",
            )
            for width in (1, 2, 4, 8)
        ]
        self.halvings = ConvBackbone(3, halvings, coords)
        self.dense = nn.Linear(8 * channels * end**2, outputs)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the logits of the pictures."""
        expected = (3, self.size, self.size)
        if pictures.ndim != 4 or pictures.shape[1:] != expected:
            raise ValueError(
                f"Discriminator expects pictures of shape (N, {', '.join(map(str, expected))}),"
                f" got {tuple(pictures.shape)}"
            )
        logits: Tensor = self.dense(self.halvings(pictures).flatten(1))
        return logits


class Autoencoder(nn.Module):
    """A variational autoencoder whose decoder is one of the generators.

    Kingma & Welling, "Auto-Encoding Variational Bayes", ICLR 2014. The paper trains one with and
    one without coordinates and reports neither architecture nor numbers; both are ours.

    Args:
        encoder: From pictures to means and log-variances, ``(N, 2 * latent)``.
        decoder: From latent vectors ``(N, latent)`` to pictures.

    Shape:
        - Input: pictures ``(N, 3, size, size)``, in [-1, 1].
        - Output: pictures of the same shape, means ``(N, latent)`` and log-variances.
    """

    def __init__(
        self, encoder: Discriminator, decoder: CoordConvGenerator | DeconvGenerator
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def encode(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of the latent vectors of pictures, ``(N, latent)`` each."""
        mean, log_variance = self.encoder(pictures).chunk(2, dim=1)
        return mean, log_variance

    def forward(self, pictures: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return reconstructions, means and log-variances; ``noise`` is normal, ``(N, latent)``."""
        mean, log_variance = self.encode(pictures)
        latents = mean + noise * (0.5 * log_variance).exp()
        return self.decoder(latents), mean, log_variance


def _check_latents(latents: Tensor, length: int) -> None:
    if latents.ndim != 2 or latents.shape[1] != length:
        raise ValueError(
            f"expected latent vectors of shape (N, {length}), got {tuple(latents.shape)}"
        )


def _sixteenth(size: int) -> int:
    if size < 16 or size % 16:
        raise ValueError(f"pictures must be a multiple of 16 pixels high and wide, got {size}")
    return size // 16


def _doubling(channels: int, norm: Norm = "none", activation: Activation = "relu") -> ConvSpec:
    return ConvSpec(
        channels,
        5,
        stride=2,
        padding=2,
        transposed=True,
        output_padding=1,
        norm=norm,
        activation=activation,
    )
