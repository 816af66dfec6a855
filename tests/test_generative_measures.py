"""Measures of mode collapse: literal values, and how each reacts to a collapse that is known."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from coordrl.generative.data import Canvas, Objects, draw_objects, draw_pictures
from coordrl.generative.measures import (
    OVERLAPS,
    Row,
    entropy,
    jensen_shannon,
    measure,
    near_duplicates,
    paper_entropies,
    recall_and_coverage,
)
from coordrl.generative.objects import color_centers, color_masks, find_objects

PAPER = Canvas()
SMALL = Canvas(size=32, radius=5)
COUNT = 2000


def objects(count: int, canvas: Canvas = PAPER, seed: int = 0) -> Objects:
    return draw_objects(canvas, count, torch.Generator().manual_seed(seed))


def paint(color: tuple[float, float, float]) -> Tensor:
    return torch.tensor(color).view(1, 3, 1, 1).repeat(1, 1, 32, 32)


def test_colors_are_masked_by_their_lead_of_half_the_range() -> None:
    pictures = torch.cat(
        [paint((-1, -1, 1)), paint((1, -1, -1)), paint((1, 1, 1)), paint((0.5, -0.4, -1))]
    )
    masks = color_masks(pictures)
    assert masks.float().mean(dim=(2, 3)).tolist() == [[1, 0], [0, 1], [0, 0], [0, 0]]


def test_values_outside_the_range_are_cut_off_before_colors_are_told() -> None:
    assert color_masks(paint((9, 2, 2))).any().item() is False


def test_a_color_is_missing_below_a_tenth_of_a_disc() -> None:
    # 30 pixels on the paper's canvas, a quarter of that on one whose objects are half as wide.
    for canvas, least in ((PAPER, 30), (SMALL, 8)):
        picture = torch.ones(1, 3, canvas.size * canvas.size)
        picture[:, :2, :least] = -1  # blue
        picture[:, 1:, 100 : 100 + least - 1] = -1  # red
        _, is_there = color_centers(picture.view(1, 3, canvas.size, canvas.size), canvas)
        assert is_there.tolist() == [[True, False]]


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (torch.zeros(2, 1, 32, 32), r"\(N, 3, H, W\), got \(2, 1, 32, 32\)"),
        (torch.full((2, 3, 32, 32), math.nan), "the generator has diverged"),
    ],
    ids=["gray", "nan"],
)
def test_what_is_no_picture_is_refused(pictures: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paper_entropies(pictures, SMALL)


def test_pictures_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="expected pictures of 32x32 pixels, got 64x64"):
        measure(draw_pictures(objects(3), PAPER), objects(3, SMALL), SMALL)


def test_color_centers_are_the_objects_where_nothing_is_covered() -> None:
    drawn = Objects(torch.tensor([[[12, 40], [45, 15]]] * 2), torch.tensor([[True, False]] * 2))
    pictures = draw_pictures(drawn, PAPER)
    pictures[1, :, :, 32:] = 1.0  # no red

    centers, is_there = color_centers(pictures, PAPER)

    assert centers[0].tolist() == [[12, 40], [45, 15]]
    assert is_there.tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize("canvas", [PAPER, SMALL], ids=["paper", "small"])
def test_real_objects_are_found_exactly_and_valid(canvas: Canvas) -> None:
    drawn = objects(300, canvas)

    found = find_objects(draw_pictures(drawn, canvas), canvas)

    assert_close(found.objects.centers, drawn.centers)
    assert_close(found.objects.is_disc, drawn.is_disc)
    assert found.is_valid(0.8).all()
    assert not found.other.any()


def test_objects_are_found_through_noise_and_faded_colors() -> None:
    torch.manual_seed(0)
    drawn = objects(100)
    pictures = draw_pictures(drawn, PAPER) * 0.76
    noisy = pictures + 0.2 * torch.randn_like(pictures)

    found = find_objects(noisy, PAPER)

    assert found.is_valid().float().mean() > 0.95
    assert (found.objects.centers - drawn.centers).abs().max() <= 1


def test_pictures_without_two_objects_of_their_own_are_not_valid() -> None:
    drawn = draw_pictures(objects(20, SMALL), SMALL)
    # Another blue object, where the red one was.
    two_blue = torch.where(drawn[:, :1] > drawn[:, 2:], drawn.flip(1), drawn)
    fakes = {
        "white": torch.ones_like(drawn),
        "average": drawn.mean(dim=0, keepdim=True),
        "noise": torch.rand(20, 3, 32, 32) * 2 - 1,
        "two blue": two_blue,
        "blue alone": torch.where(drawn[:, :1] > drawn[:, 2:], 1.0, drawn),
    }
    for name, pictures in fakes.items():
        assert not find_objects(pictures, SMALL).is_valid(0.5).any(), name


def test_a_second_object_of_a_color_is_outside_the_first() -> None:
    one = draw_pictures(Objects(torch.tensor([[[8, 8], [24, 8]]]), torch.zeros(1, 2) > 0), SMALL)
    other = draw_pictures(Objects(torch.tensor([[[8, 24], [24, 8]]]), torch.zeros(1, 2) > 0), SMALL)
    two_blue = torch.minimum(one, other)

    assert find_objects(one, SMALL).outside.tolist() == [[0, 0]]
    assert_close(find_objects(two_blue, SMALL).outside, torch.tensor([[1.0, 0.0]]))


def test_entropies_of_true_pictures_are_those_that_the_paper_reports() -> None:
    entropies = paper_entropies(draw_pictures(objects(1000), PAPER), PAPER)

    assert entropies.red == pytest.approx(4.0, abs=0.06)
    assert entropies.blue == pytest.approx(4.0, abs=0.06)
    assert entropies.difference == pytest.approx(3.52, abs=0.06)
    assert entropies.missing == 0


def test_entropies_of_two_pictures_are_those_of_a_coin() -> None:
    two = Objects(
        torch.tensor([[[12, 12], [40, 40]], [[12, 12], [50, 20]]] * 8), torch.ones(16, 2) > 0
    )
    pictures = draw_pictures(two, PAPER)
    pictures[0] = 1.0  # nothing in it

    entropies = paper_entropies(pictures, PAPER)

    coin = -sum(p * math.log(p) for p in (7 / 15, 8 / 15))
    assert entropies.red == entropies.difference == pytest.approx(coin)
    assert entropies.blue == 0
    assert entropies.missing == pytest.approx(1 / 16)


def test_the_entropy_of_states_is_corrected_for_how_few_pictures_there_are() -> None:
    corners = torch.tensor([[[9, 9], [54, 54]], [[54, 54], [9, 9]]])  # two states, far apart
    shown = Objects(corners, torch.tensor([[True, False]] * 2)).take(torch.arange(COUNT) % 2)
    entropy = row_of(shown, objects(COUNT)).entropy
    assert entropy == pytest.approx(math.log(2) + 1 / (2 * COUNT), abs=1e-6)


def test_pictures_without_one_of_the_colors_are_left_out_of_all_entropies() -> None:
    pictures = draw_pictures(objects(40), PAPER)
    without_red = pictures[:20].clone()
    without_red[:, 1:][without_red[:, :1].expand(-1, 2, -1, -1) > 0] = 1.0

    found = paper_entropies(torch.cat([pictures, without_red]), PAPER)

    assert found == replace(paper_entropies(pictures, PAPER), missing=found.missing)
    assert found.missing == pytest.approx(20 / 60)


def test_pictures_without_objects_have_no_entropy() -> None:
    entropies = paper_entropies(torch.ones(10, 3, 64, 64), PAPER)
    assert (entropies.red, entropies.missing) == (0, 1)


def test_no_entropy_is_no_negative_zero() -> None:
    assert str(entropy(np.array([0, 5]))) == "0.0"


def red_anywhere(count: int) -> Objects:
    """A blue disc that stays and a red square in each row of one column, over and over."""
    centers = torch.tensor([[[8, 8], [24, y % 22 + 5]] for y in range(count)])
    return Objects(centers, torch.tensor([[True, False]] * count))


def test_measures_are_of_both_objects_and_all_coordinates() -> None:
    shown = red_anywhere(66)
    real = replace(shown, centers=shown.centers + torch.tensor([[0, 0], [2, 0]]))

    row, again = (measure(draw_pictures(shown, SMALL), real, SMALL) for _ in range(2))

    assert row == again
    assert row.cells == pytest.approx((1 + 11) / (2 * 11**2))
    assert row.discs == 0.5
    assert row.wasserstein == pytest.approx(2 / 4)  # of one of four coordinates
    assert row.duplicates == 22 * 3 + 21 * 9  # in the same row, and in the next


def test_fifty_valid_pictures_are_enough() -> None:
    pictures = draw_pictures(red_anywhere(50), SMALL)
    assert measure(pictures, red_anywhere(50), SMALL).recall == 1
    assert measure(pictures[1:], red_anywhere(50), SMALL).recall is None


def test_cells_are_as_fine_as_there_are_places() -> None:
    canvas = Canvas(size=16, radius=3)
    pictures = draw_pictures(objects(2000, canvas), canvas)
    assert measure(pictures, objects(6, canvas), canvas).cells == pytest.approx(1, abs=0.02)


@pytest.fixture(scope="module")
def reference() -> Objects:
    return objects(COUNT, seed=1)


@pytest.fixture(scope="module")
def real(reference: Objects) -> Row:
    return row_of(objects(COUNT), reference)


def row_of(shown: Objects, reference: Objects) -> Row:
    """The row, as if the objects had been found; that they are is tested above."""
    return measure(draw_pictures(shown, PAPER), reference, PAPER)


def test_real_pictures_have_the_row_of_the_reference(real: Row) -> None:
    assert min(real.valid) == 1
    assert real.cells == pytest.approx(1, abs=0.01)
    assert real.entropy == pytest.approx(6.53, abs=0.04)
    assert real.divergence == pytest.approx(0.112, abs=0.01)
    assert real.wasserstein == pytest.approx(0.5, abs=0.25)
    assert real.sliced_wasserstein == pytest.approx(0.5, abs=0.25)
    assert real.discs == pytest.approx(0.5, abs=0.03)
    assert real.recall == pytest.approx(0.995, abs=0.01)
    assert real.coverage == pytest.approx(0.97, abs=0.02)
    assert real.duplicates is not None
    assert real.duplicates < 10


def test_squares_only_are_seen_by_what_knows_shapes(real: Row, reference: Objects) -> None:
    shown = objects(COUNT)
    row = row_of(replace(shown, is_disc=torch.zeros_like(shown.is_disc)), reference)

    assert row.entropy == pytest.approx(5.21, abs=0.04)
    assert row.divergence == pytest.approx(0.405, abs=0.01)
    assert row.discs == 0
    assert (row.cells, row.recall, row.coverage) == (real.cells, real.recall, real.coverage)


def test_fifty_pictures_over_and_over_are_seen_by_all(real: Row, reference: Objects) -> None:
    chosen = torch.randint(50, (COUNT,), generator=torch.Generator().manual_seed(0))
    row = row_of(objects(COUNT).take(chosen), reference)

    assert row.cells == pytest.approx(0.33, abs=0.03)
    assert row.entropy == pytest.approx(3.89, abs=0.05)
    assert row.divergence == pytest.approx(0.57, abs=0.02)
    assert row.recall == 0
    assert row.coverage == pytest.approx(0.12, abs=0.03)
    assert row.duplicates == pytest.approx(COUNT**2 / 100, rel=0.05)


def test_five_hundred_pictures_hide_from_the_cells_but_not_from_duplicates(
    reference: Objects,
) -> None:
    chosen = torch.randint(500, (COUNT,), generator=torch.Generator().manual_seed(0))
    row = row_of(objects(COUNT).take(chosen), reference)

    assert row.cells is not None
    assert row.cells > 0.95
    assert row.duplicates == pytest.approx(COUNT**2 / 1000, rel=0.1)
    assert row.divergence == pytest.approx(0.28, abs=0.02)


def test_blue_always_left_of_red_is_seen_by_distances(real: Row, reference: Objects) -> None:
    shown = objects(COUNT)
    swapped = shown.centers[:, 0, 0] > shown.centers[:, 1, 0]
    centers = torch.where(swapped.view(-1, 1, 1), shown.centers.flip(1), shown.centers)
    row = row_of(replace(shown, centers=centers), reference)

    assert row.wasserstein == pytest.approx(4.85, abs=0.2)
    assert row.sliced_wasserstein == pytest.approx(5, abs=1)
    assert row.recall == pytest.approx(0.56, abs=0.04)


def test_centers_in_the_middle_leave_cells_empty(reference: Objects) -> None:
    shown = objects(COUNT)
    inner = ((shown.centers - 31.5) * 0.8 + 31.5).round().long()
    row = row_of(replace(shown, centers=inner), reference)
    assert row.cells == pytest.approx(0.67, abs=0.01)
    assert row.wasserstein == pytest.approx(2.1, abs=0.4)


def test_pictures_are_valid_up_to_the_overlap_of_their_objects() -> None:
    centers = torch.tensor([[[20, 12], [45, 50]]])
    discs = Objects(centers, torch.ones(1, 2, dtype=torch.bool))
    for radius, valid in ((9, [1, 1, 1, 0]), (8, [1, 1, 0, 0]), (7, [0, 0, 0, 0])):
        pictures = draw_pictures(discs, Canvas(radius=radius))  # 0.80, 0.62 and 0.47 of a disc
        row = measure(pictures, objects(6), PAPER)
        assert list(row.valid) == valid
        assert find_objects(pictures, PAPER).is_valid().tolist() == [bool(valid[2])]
    assert OVERLAPS[2] == 0.7  # which all other measures are at


def test_more_of_a_color_or_of_another_color_makes_a_picture_invalid() -> None:
    squares = Objects(torch.tensor([[[12, 12], [50, 12]]]), torch.zeros(1, 2, dtype=torch.bool))
    picture = draw_pictures(squares, PAPER)
    blue, green = (torch.tensor(color).view(3, 1, 1) for color in ((-1.0, -1, 1), (-1.0, 1, -1)))
    for color, area, valid in (
        # A square has 441 pixels, of which a quarter may be outside; the picture has 4,096.
        (blue, (slice(40, 50), slice(11)), True),
        (blue, (slice(40, 51), slice(11)), False),
        (green, (slice(40, 43), slice(64)), True),
        (green, (slice(40, 44), slice(64)), False),
    ):
        changed = picture.clone()
        changed[0][:, *area] = color
        found = find_objects(changed, PAPER)
        assert found.overlap.min() > 0.7
        assert found.is_valid().tolist() == [valid]


def test_the_spread_of_the_average_is_over_its_pixels_and_averaged_over_colors() -> None:
    pictures = torch.ones(4, 3, 64, 64)
    pictures[:, 0, :, 32:] = -1  # in one color: half the pixels 1, half -1
    pictures[:2, 1, 20:] = -1  # 20 rows of 1, 44 of 0
    pictures[2:, 2, ::2] = -1  # half of them 1, half 0
    expected = (1 + math.sqrt(20 * 44) / 64 + 0.5) / 3
    assert measure(pictures, objects(4), PAPER).average_spread == pytest.approx(expected)


def test_few_valid_pictures_measure_nothing(reference: Objects) -> None:
    pictures = draw_pictures(objects(60), PAPER)
    pictures[:12] = 1.0
    row = measure(pictures, reference, PAPER)
    assert row.valid == pytest.approx((0.8, 0.8, 0.8, 0.8))
    assert row.cells is row.duplicates is row.recall is None


def test_no_pictures_are_refused(reference: Objects) -> None:
    with pytest.raises(ValueError, match="expected pictures to compare, got 0 and 2000 real"):
        measure(torch.zeros(0, 3, 64, 64), reference, PAPER)
    with pytest.raises(ValueError, match="expected pictures to compare, got 2 and 0 real"):
        measure(torch.zeros(2, 3, 64, 64), reference.take(torch.arange(0)), PAPER)


def test_jensen_shannon_of_halves_that_share_a_quarter() -> None:
    one, two = np.array([2, 2, 0]), np.array([0, 1, 3])
    expected = 0.5 * (0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.375))
    expected += 0.5 * (0.25 * math.log(0.25 / 0.375) + 0.75 * math.log(2))
    assert jensen_shannon(one, two) == pytest.approx(expected)
    assert jensen_shannon(two, one) == pytest.approx(expected)


def test_recall_and_coverage_of_points_on_a_line() -> None:
    real = np.arange(10.0).reshape(-1, 1)
    half = np.arange(0, 5.0).reshape(-1, 1)

    assert recall_and_coverage(real, real, neighbors=1) == (1, 1)
    # Balls of radius 1 around 0 to 4 hold 0 to 5; of the balls of the real points those of 0 to 5
    # hold one of them.
    assert recall_and_coverage(half, real, neighbors=1) == (0.6, 0.6)


def test_recall_and_coverage_need_a_neighbor_of_each_point() -> None:
    points = np.arange(60.0).reshape(-1, 1)
    far = points[:6] + 1000
    assert recall_and_coverage(points, far) == recall_and_coverage(far, points) == (0, 0)
    with pytest.raises(ValueError, match=r"reach to neighbor 5 need 6 .*, got 60 and 5 real"):
        recall_and_coverage(points, far[:5])
    with pytest.raises(ValueError, match=r"reach to neighbor 5 need 6 .*, got 5 and 60 real"):
        recall_and_coverage(far[:5], points)
    with pytest.raises(ValueError, match=r"reach to neighbor 5 need 6 .*, got 50 and 5 real"):
        measure(draw_pictures(red_anywhere(50), SMALL), objects(5, SMALL), SMALL)


def test_near_duplicates_need_equal_shapes_and_one_pixel() -> None:
    places = torch.tensor([[[10, 10], [40, 40]]] * 6)
    places[1, 0, 0] += 1  # the only one that is near the first
    places[2, 1, 1] += 2
    places[3, 0] -= 1  # the square root of 2
    is_disc = torch.tensor([[False, False]] * 4 + [[True, False], [False, True]])
    assert near_duplicates(Objects(places, is_disc)) == 1
