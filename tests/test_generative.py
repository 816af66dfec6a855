"""Data and networks of the generative models: against the authors' recipe, and bad input."""

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F
from torch.testing import assert_close

from coordrl.backbone import count_parameters, initialize_he_normal
from coordrl.generative.data import (
    Canvas,
    Objects,
    SortOfClevr,
    draw_objects,
    draw_pictures,
    object_masks,
)
from coordrl.generative.networks import (
    Autoencoder,
    CoordConvGenerator,
    DeconvGenerator,
    Discriminator,
    convolve_tiled,
)
from coordrl.generative.objectives import (
    R3GAN,
    PaperObjective,
    autoencoder_loss,
    make_objective,
    squared_gradient,
)
from coordrl.layers import CoordConv2d, CoordinateSystem, coordinate_grid

CPU = torch.device("cpu")
PAPER = Canvas()
SMALL = Canvas(size=16, radius=3)


def objects(count: int, canvas: Canvas = PAPER, seed: int = 0) -> Objects:
    return draw_objects(canvas, count, torch.Generator().manual_seed(seed))


def authors_picture(centers: list[list[int]], is_disc: list[bool], canvas: Canvas) -> Tensor:
    """What cv2 draws, as in data/sort_of_clevr_generator.py of uber-research/CoordConv."""
    image = np.full((canvas.size, canvas.size, 3), 255, np.uint8)
    for (x, y), disc, color in zip(centers, is_disc, [(0, 0, 255), (255, 0, 0)], strict=True):
        if disc:
            cv2.circle(image, (x, y), canvas.radius, color, -1)
        else:
            corner, opposite = (x - canvas.radius, y - canvas.radius), canvas.radius
            cv2.rectangle(image, corner, (x + opposite, y + opposite), color, -1)
    return torch.from_numpy(image).permute(2, 0, 1) / 127.5 - 1


@pytest.mark.parametrize("canvas", [PAPER, SMALL], ids=["paper", "small"])
def test_pictures_are_those_that_opencv_draws(canvas: Canvas) -> None:
    drawn = objects(40, canvas)
    pictures = draw_pictures(drawn, canvas)

    for index, picture in enumerate(pictures):
        one = drawn.centers[index].tolist(), drawn.is_disc[index].tolist()
        assert_close(picture, authors_picture(*one, canvas), rtol=0, atol=0)


def test_objects_are_on_the_canvas_apart_and_of_both_shapes() -> None:
    drawn = objects(4000)

    assert (int(drawn.centers.min()), int(drawn.centers.max())) == (10, 53)
    blue, red = drawn.centers.unbind(dim=1)
    assert (blue - red).square().sum(dim=1).min() == 20**2
    assert_close(drawn.is_disc.float().mean(dim=0), torch.full((2,), 0.5), rtol=0, atol=0.03)


def test_blue_is_anywhere_and_red_is_pushed_outwards() -> None:
    blue, red = (objects(4000).centers - 31.5).square().sum(dim=2).float().mean(dim=0)
    assert_close(blue, torch.tensor(2 * (44**2 - 1) / 12), rtol=0.03, atol=0)
    assert red > 1.1 * blue


def test_red_is_drawn_over_blue() -> None:
    overlapping = Objects(torch.tensor([[[20, 20], [34, 35]]]), torch.tensor([[False, False]]))
    picture = draw_pictures(overlapping, PAPER)[0]
    masks = object_masks(overlapping, PAPER)[0]

    assert (masks[0] & masks[1]).sum() == 7 * 6
    assert picture[:, 30, 30].tolist() == [1, -1, -1]
    assert picture[:, 10, 10].tolist() == [-1, -1, 1]
    assert picture[:, 0, 0].tolist() == [1, 1, 1]


def test_a_seed_decides_the_set_and_batches_are_its_pictures() -> None:
    one, same, other = (SortOfClevr(SMALL, 20, seed) for seed in (4, 4, 5))
    everything = one.batch(torch.arange(20), CPU)

    assert len(one) == 20
    assert_close(everything, same.batch(torch.arange(20), CPU), rtol=0, atol=0)
    assert not torch.equal(everything, other.batch(torch.arange(20), CPU))
    assert_close(one.batch(torch.tensor([7, 3]), CPU), everything[[7, 3]], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("size", "radius", "message"),
    [
        (16, 0, "at least 1 pixel, got 0"),
        (64, 20, "too small for two objects of radius 20"),
        (15, 3, "too small for two objects of radius 3; 18 are enough"),  # and 16 as well: SMALL
        (5, 1, "too small for two objects of radius 1; 6 are enough"),
    ],
)
def test_a_canvas_without_room_for_two_objects_is_refused(
    size: int, radius: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Canvas(size, radius)


def test_the_smallest_canvas_has_room_wherever_blue_is() -> None:
    for canvas in (SMALL, Canvas(size=6, radius=1)):
        assert len(objects(500, canvas)) == 500


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one picture, got count=0"):
        SortOfClevr(SMALL, count=0)


@pytest.mark.parametrize(
    ("network", "parameters"),
    [
        (CoordConvGenerator(), 444_931),
        (DeconvGenerator(), 6_413_315),
        (Discriminator(), 4_316_545),
        (Discriminator(coords="first"), 4_319_745),
    ],
    ids=["coordconv", "deconv", "discriminator", "discriminator with coordinates"],
)
def test_networks_have_the_authors_parameters(network: nn.Module, parameters: int) -> None:
    assert count_parameters(network) == parameters


def tiled(generator: CoordConvGenerator, latents: Tensor) -> Tensor:
    """The generator by the paper's definition: every pixel has the latent vector and its place."""
    size = generator.size
    canvas = latents[:, :, None, None].expand(-1, -1, size, size)
    x = torch.cat([canvas, coordinate_grid(size, size).expand(len(latents), -1, -1, -1)], dim=1)
    layers = [m for m in generator.modules() if isinstance(m, nn.Conv2d)]
    for index, layer in enumerate(layers):
        x = F.conv2d(x, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2)
        x = F.relu(x) if index < len(layers) - 1 else x
    return x


def test_the_generator_that_tiles_nothing_equals_the_tiled_one() -> None:
    generator = CoordConvGenerator(size=16, latent=5, channels=3, tanh=False)
    initialize_he_normal(generator, torch.Generator().manual_seed(0))
    latents = torch.rand(3, 5) * 2 - 1

    ours, definition = generator(latents), tiled(generator, latents)

    assert_close(ours, definition)
    weights = list(generator.parameters())
    upstream = torch.randn_like(ours)
    assert_close(
        torch.autograd.grad((ours * upstream).sum(), weights),
        torch.autograd.grad((definition * upstream).sum(), weights),
        rtol=1e-4,
        atol=1e-4,
    )


def test_autocast_keeps_the_coordinates_of_the_tiled_layer_exact() -> None:
    layer = CoordConv2d(1, 1, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[[[0.0]], [[1.0]], [[1 / 3]]]]))
    vectors = torch.zeros(1, 1)

    with torch.autocast("cpu", torch.bfloat16):
        ours = convolve_tiled(layer, vectors, 5, 40)

    assert ours.dtype == torch.bfloat16
    assert_close(ours, convolve_tiled(layer, vectors, 5, 40).bfloat16(), rtol=0, atol=0)


def test_tiled_vectors_see_the_coordinates_of_the_layers_system() -> None:
    system = CoordinateSystem(anchor="centers", origin=(0.0, 1.0), frequencies=1)
    layer = CoordConv2d(3, 4, 1, with_r=True, system=system)
    vectors = torch.randn(2, 3)
    tiled = vectors[:, :, None, None].expand(-1, -1, 5, 7)
    assert_close(convolve_tiled(layer, vectors, 5, 7), layer(tiled))


def test_the_generator_has_a_shape_without_memory() -> None:
    generator = CoordConvGenerator(size=16, latent=5, channels=3).to("meta")
    assert generator(torch.empty(2, 5, device="meta")).shape == (2, 3, 16, 16)


@pytest.mark.parametrize("make", [CoordConvGenerator, DeconvGenerator])
@pytest.mark.parametrize("size", [16, 32])
def test_generators_end_in_tanh_at_any_multiple_of_sixteen(
    make: type[CoordConvGenerator | DeconvGenerator], size: int
) -> None:
    torch.manual_seed(0)
    pictures = make(size, latent=6, channels=2)(torch.randn(2, 6) * 100)
    assert pictures.shape == (2, 3, size, size)
    assert pictures.abs().max() <= 1


def test_only_coordinates_tell_the_generators_pixels_apart() -> None:
    generator = CoordConvGenerator(size=16, latent=4, channels=2)
    with torch.no_grad():
        next(generator.parameters())[:, 4:] = 0  # the weights of the coordinates

    inside = generator(torch.rand(1, 4))[:, :, 2:-2, 2:-2]  # the 3x3 kernels see the border

    assert_close(inside, inside[..., :1, :1].expand_as(inside))


@pytest.mark.parametrize("make", [DeconvGenerator, Discriminator])
def test_sizes_that_four_halvings_do_not_reach_are_refused(
    make: type[DeconvGenerator | Discriminator],
) -> None:
    with pytest.raises(ValueError, match="a multiple of 16 pixels high and wide, got 40"):
        make(40)


@pytest.mark.parametrize("shape", [(2, 3, 16, 32), (2, 1, 16, 16), (3, 16, 16)])
def test_the_discriminator_names_the_pictures_it_expects(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expects pictures of shape \(N, 3, 16, 16\), got \("):
        Discriminator(16, channels=2)(torch.zeros(shape))


@pytest.mark.parametrize("make", [CoordConvGenerator, DeconvGenerator])
def test_generators_name_the_latent_vectors_they_expect(
    make: type[CoordConvGenerator | DeconvGenerator],
) -> None:
    with pytest.raises(ValueError, match=r"latent vectors of shape \(N, 6\), got \(2, 5\)"):
        make(16, latent=6, channels=2)(torch.zeros(2, 5))


def test_the_discriminator_lets_a_fifth_of_what_is_negative_pass() -> None:
    slopes = [m.negative_slope for m in Discriminator().modules() if isinstance(m, nn.LeakyReLU)]
    assert slopes == [0.2] * 4


def test_the_autoencoder_decodes_the_mean_and_as_much_noise_as_it_says() -> None:
    encoder = Discriminator(16, channels=2, norm="none", outputs=8)
    autoencoder = Autoencoder(encoder, CoordConvGenerator(16, latent=4, channels=2, tanh=False))
    pictures = draw_pictures(objects(3, SMALL), SMALL)

    noise = torch.randn(3, 4)

    decoded, mean, log_variance = autoencoder(pictures, noise)

    assert mean.shape == log_variance.shape == (3, 4)
    assert_close(decoded, autoencoder.decoder(mean + noise * log_variance.exp().sqrt()))
    without, *_ = autoencoder(pictures, torch.zeros(3, 4))
    assert_close(without, autoencoder.decoder(mean))


REAL = torch.tensor([0.3, -1.0, 2.0])
FAKE = torch.tensor([-0.5, 0.25, 1.0])


def linear(pictures: Tensor) -> Tensor:
    """A discriminator whose gradient is known: the sum of a picture's pixels."""
    return pictures.sum(dim=(1, 2, 3)).unsqueeze(1)


def as_pictures(sums: Tensor) -> Tensor:
    return (sums / 12).view(-1, 1, 1, 1).repeat(1, 3, 2, 2)


def test_the_papers_objective_is_binary_cross_entropy() -> None:
    real, fake = as_pictures(REAL), as_pictures(FAKE)
    cross_entropy = F.binary_cross_entropy_with_logits
    objective = PaperObjective()

    assert_close(
        objective.discriminator_loss(linear, real, fake),
        cross_entropy(REAL, torch.ones(3)) + cross_entropy(FAKE, torch.zeros(3)),
    )
    assert_close(objective.generator_loss(linear, real, fake), cross_entropy(FAKE, torch.ones(3)))


def test_r3gan_judges_pairs_and_penalizes_both_gradients() -> None:
    real, fake = as_pictures(REAL), as_pictures(FAKE)
    objective = R3GAN(gamma=0.5)

    def squaring(pictures: Tensor) -> Tensor:  # the gradient of sum^2 is 2 * sum for each of 12
        return linear(pictures) ** 2

    pairs = F.softplus(FAKE**2 - REAL**2).mean()
    penalties = 12 * (2 * REAL).square().mean() + 12 * (2 * FAKE).square().mean()
    assert_close(objective.discriminator_loss(squaring, real, fake), pairs + 0.25 * penalties)
    assert_close(objective.generator_loss(linear, real, fake), F.softplus(REAL - FAKE).mean())


def test_squared_gradient_is_each_pictures_own() -> None:
    pictures = as_pictures(REAL).requires_grad_()
    squared = squared_gradient((linear(pictures) ** 2).squeeze(1), pictures)
    assert_close(squared, 12 * (2 * REAL) ** 2)


@pytest.mark.parametrize("name", ["paper", "r3gan"])
def test_both_networks_get_gradients_of_their_own_loss(name: str) -> None:
    objective = make_objective(name, gamma=1.0)  # type: ignore[arg-type]
    generator = DeconvGenerator(16, latent=4, channels=1)
    discriminator = Discriminator(16, channels=2, norm="none")
    real, fake = draw_pictures(objects(4, SMALL), SMALL), generator(torch.rand(4, 4))

    objective.discriminator_loss(discriminator, real, fake.detach()).backward()  # type: ignore[no-untyped-call]
    objective.generator_loss(discriminator, real, fake).backward()  # type: ignore[no-untyped-call]

    for parameter in [*generator.parameters(), *discriminator.parameters()]:
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    assert any(p.grad.any() for p in generator.parameters() if p.grad is not None)


def test_the_autoencoders_loss_adds_up_nats_of_pixels_and_of_latents() -> None:
    logits, pictures = torch.zeros(2, 3, 4, 5), torch.ones(2, 3, 4, 5)
    mean, log_variance = torch.tensor([[2.0, 0.0]] * 2), torch.zeros(2, 2)

    loss = autoencoder_loss(logits, pictures, mean, log_variance, beta=0.5)

    assert_close(loss, 60 * torch.tensor(2.0).log() + 0.5 * 2.0)


def test_autoencoder_loss_is_the_likelihood_of_lights_and_the_divergence_of_normals() -> None:
    torch.manual_seed(0)
    logits, pictures = torch.randn(3, 2, 4, 5), torch.rand(3, 2, 4, 5) * 2 - 1
    mean, log_variance = torch.randn(2, 3, 6).unbind()

    loss = autoencoder_loss(logits, pictures, mean, log_variance, beta=0.3)

    on, light = logits.sigmoid(), (1 + pictures) / 2  # -1 is dark
    likelihood = (light * on.log() + (1 - light) * (1 - on).log()).sum() / 3
    vectors = Normal(mean, (log_variance / 2).exp())
    divergence = kl_divergence(vectors, Normal(0.0, 1.0)).sum() / 3
    assert_close(loss, 0.3 * divergence - likelihood)
