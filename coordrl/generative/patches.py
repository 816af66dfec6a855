"""Distance between any generated and real pictures, by their patches.

Karras et al., "Progressive Growing of GANs", ICLR 2018, section 5: pictures are split into bands of
detail, from the finest to a 16x16 thumbnail. In each band, patches of 7x7 pixels of one set are
compared with those of the other. This needs no learned weights and no objects.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

_SIDE = 7
_SMALLEST = 16


def laplacian_pyramid(pictures: Tensor) -> list[Tensor]:
    """Return the bands of detail of pictures ``(N, C, H, W)``, the finest first.

    Pictures are halved while their sides are even and 32 pixels or more. Each band is the picture
    minus its half-size version, enlarged; the last is the smallest picture. Enlarged and added up,
    the bands give the pictures.

    Example:
        >>> [tuple(band.shape[2:]) for band in laplacian_pyramid(torch.zeros(1, 3, 64, 64))]
        [(64, 64), (32, 32), (16, 16)]
    """
    bands = []
    while min(pictures.shape[-2:]) >= 2 * _SMALLEST and not any(n % 2 for n in pictures.shape[-2:]):
        halved = F.avg_pool2d(pictures, 2)
        bands.append(pictures - _enlarged(halved))
        pictures = halved
    return [*bands, pictures]


def _enlarged(pictures: Tensor) -> Tensor:
    return F.interpolate(pictures, scale_factor=2, mode="bilinear", align_corners=False)


def sliced_wasserstein(
    pictures: Tensor,
    real: Tensor,
    generator: torch.Generator,
    *,
    patches: int = 64,
    directions: int = 128,
) -> list[float]:
    """Return the distance of two sets of pictures in each band of detail, the finest first.

    Patches are taken from random places, and each color is scaled to mean 0 and standard deviation
    1 over its set. The distance is that of sorted projections onto random directions, averaged, as
    in the authors' code, whose tables show it times 1,000.

    Args:
        pictures: ``(N, C, H, W)``, of a size that is a power of two times 16 or less.
        real: Equally many, of the same shape.
        generator: Random generator for patches and directions, on the pictures' device.
        patches: Patches from each picture, 128 in the paper.
        directions: Random directions, 512 in the paper.

    Raises:
        ValueError: If the sets differ in number or size, or pictures are smaller than a patch.

    Example:
        >>> random = torch.Generator().manual_seed(0)
        >>> noise, more = torch.randn(2, 64, 3, 32, 32, generator=random)
        >>> [round(distance, 1) for distance in sliced_wasserstein(noise, more, random)]
        [0.0, 0.0]
        >>> [round(distance, 1) for distance in sliced_wasserstein(noise, 0 * more, random)]
        [0.8, 0.8]
    """
    if pictures.shape != real.shape or pictures.ndim != 4 or min(pictures.shape[-2:]) < _SIDE:
        raise ValueError(
            f"expected two sets of as many pictures, {_SIDE} pixels or more, of one size, got"
            f" {tuple(pictures.shape)} and {tuple(real.shape)}"
        )
    distances = []
    for band, real_band in zip(laplacian_pyramid(pictures), laplacian_pyramid(real), strict=True):
        first = _patches(band, patches, generator)
        second = _patches(real_band, patches, generator)
        length = first.shape[1]
        ways = torch.randn(length, directions, generator=generator, device=first.device)
        ways = ways / ways.norm(dim=0)
        apart = (first @ ways).sort(dim=0).values - (second @ ways).sort(dim=0).values
        distances.append(float(apart.abs().mean()))
    return distances


def _patches(band: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return scaled patches from random places, ``(N * count, C * 49)``."""
    number, _, height, width = band.shape
    rows = _starts(height, (number, count), generator)
    columns = _starts(width, (number, count), generator)
    picture = torch.arange(number, device=band.device).view(-1, 1, 1, 1)
    cut = band.movedim(1, -1)[picture, rows.unsqueeze(3), columns.unsqueeze(2)]
    taken = cut.flatten(0, 1)  # (N * count, 7, 7, C)
    mean, deviation = taken.mean(dim=(0, 1, 2)), taken.std(dim=(0, 1, 2), correction=0)
    return ((taken - mean) / deviation.clamp_min(1e-8)).flatten(1)


def _starts(length: int, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return the pixels that random patches cover along an axis, ``(*shape, 7)``."""
    first = torch.randint(length - _SIDE + 1, shape, generator=generator, device=generator.device)
    return first.unsqueeze(2) + torch.arange(_SIDE, device=generator.device)
