"""The detector: digits from every source, pictures against the authors' recipe, boxes, runs."""

import gzip
import importlib
import importlib.util
import json
import math
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

import train_detector
from broken_pictures import write_broken_chunk, write_promise_of_too_much
from coordrl.backbone import ConvSpec, Coords, count_parameters
from coordrl.config import SettingsError, parse_override
from coordrl.detection import boxes as boxes_module
from coordrl.detection import figures, table
from coordrl.detection.boxes import (
    area,
    clip,
    decode,
    encode,
    nms,
    pairwise_iou,
    pull_inside,
    roi_align,
    torchvision_nms,
)
from coordrl.detection.data import Scatter, Scenes, scatter_digits
from coordrl.detection.experiments import Experiments, _read_result
from coordrl.detection.faster_rcnn import FasterRCNN, build_detector, feature_spacing
from coordrl.detection.metrics import average_precision, proposal_metrics
from coordrl.detection.roi_heads import Detections, RoIHeads, RoISettings
from coordrl.detection.rpn import (
    ANCHOR_SIZES,
    Proposals,
    ProposalSettings,
    RegionProposalNetwork,
    anchor_boxes,
    mean_of,
    sample_boxes,
    transform_loss,
)
from coordrl.detection.sources import DigitSet, DigitSplit, load_split
from coordrl.detection.training import (
    DetectorSettings,
    DivergedError,
    Evaluation,
    Recipe,
    Run,
    RunResult,
    evaluate,
    find,
    load_detector_settings,
)
from coordrl.records import write_json
from coordrl.runs import open_run
from coordrl.stopping import Interrupted, StopRequest

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "detection.toml"


@pytest.fixture(scope="module")
def digits() -> DigitSplit:
    return load_split()


def digit_set(count: int, first: int = 0) -> DigitSet:
    """Digits that differ: a bar at another place in each."""
    images = np.zeros((count, 28, 28), np.uint8)
    for i in range(count):
        images[i, 4 + (i + first) % 20, 3:20] = 200
    return DigitSet(images, np.arange(first, first + count).astype(np.uint8) % 10)


# Digits


def test_the_shipped_digits_are_split_without_any_in_both_parts(digits: DigitSplit) -> None:
    labels = np.concatenate([digits.train.labels, digits.test.labels])
    rows = np.concatenate([digits.train.images, digits.test.images]).reshape(10_000, -1)

    assert np.bincount(labels).tolist() == [1001, 1127, 991, 1032, 980, 863, 1014, 1070, 944, 978]
    assert (len(digits.train), len(digits.test)) == (9000, 1000)
    assert digits.fingerprint == "9c5247e8b120d1c1"  # as in benchmarks/detection.json
    assert len({row.tobytes() for row in rows}) == 10_000


def test_shipped_digits_that_were_changed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    own = digit_set(3)
    monkeypatch.setattr("coordrl.detection.sources.load_digits", lambda: (own.images, own.labels))
    with pytest.raises(SettingsError, match="have changed; install it anew"):
        load_split()


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    data = header + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_mnist(folder: Path, suffix: str = "") -> tuple[DigitSet, DigitSet]:
    train, test = digit_set(7), digit_set(3, first=7)
    for part, own in (("train", train), ("t10k", test)):
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", own.images)
        write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", own.labels)
    return train, test


@pytest.mark.parametrize("suffix", ["", ".gz"], ids=["plain", "gz"])
def test_idx_files_keep_their_own_split(tmp_path: Path, suffix: str) -> None:
    train, test = write_mnist(tmp_path, suffix)

    found = load_split(tmp_path)

    assert np.array_equal(found.train.images, train.images)
    assert np.array_equal(found.test.labels, test.labels)
    assert found.train.images.flags.writeable  # or torch warns of it
    assert found.source == f"10 digits from {tmp_path} (7 to train with, 3 to test with)"


def test_idx_files_may_have_a_dot_before_idx_as_some_unpackers_name_them(tmp_path: Path) -> None:
    train, _ = write_mnist(tmp_path)
    for path in [*tmp_path.iterdir()]:
        path.rename(tmp_path / path.name.replace("-idx", ".idx"))
    (tmp_path / "train-images-idx3-ubyte").mkdir()  # what others make of the archive
    assert np.array_equal(load_split(tmp_path).train.images, train.images)


def test_a_fingerprint_is_of_pictures_and_labels_of_both_parts() -> None:
    own, other = digit_set(12), digit_set(12, first=3)
    relabeled = DigitSet(own.images, other.labels)
    splits = [(own, own), (other, own), (own, other), (relabeled, own), (own, relabeled)]
    found = [DigitSplit(train, test, "bars").fingerprint for train, test in splits]
    assert len(set(found)) == len(splits)
    assert {len(one) for one in found} == {16}


@pytest.mark.parametrize("names", [("x", "y"), ("images", "labels")])
def test_an_npz_file_without_a_split_is_split_the_same_way_each_time(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    own = digit_set(20)
    arrays: dict[str, np.ndarray] = dict(zip(names, (own.images, own.labels * 1), strict=True))
    npz(**arrays)(tmp_path)

    first, second = (load_split(tmp_path / "own.npz") for _ in range(2))

    assert (len(first.train), len(first.test)) == (18, 2)
    assert first.fingerprint == second.fingerprint
    rows = np.concatenate([first.train.images, first.test.images]).reshape(20, -1)
    assert len(np.unique(rows, axis=0)) == 20


def test_an_npz_file_as_keras_writes_it_keeps_its_split(tmp_path: Path) -> None:
    train, test = digit_set(5), digit_set(2, first=5)
    np.savez(
        tmp_path / "mnist.npz",
        x=TEN,  # the split goes first
        y=np.arange(10),
        x_train=train.images,
        y_train=train.labels,
        x_test=test.images,
        y_test=test.labels,
    )

    found = load_split(tmp_path / "mnist.npz")

    assert np.array_equal(found.test.images, test.images)


def test_a_split_is_drawn_from_all_of_the_digits_in_their_order(tmp_path: Path) -> None:
    labels = np.repeat(np.arange(10), 10)  # sorted, as folders of pictures are
    images = np.ones((100, 28, 28), np.uint8) * np.arange(1, 101, dtype=np.uint8)[:, None, None]

    split = load_split(npz(x=images, y=labels)(tmp_path))

    train, test = (part.images[:, 0, 0].tolist() for part in (split.train, split.test))
    assert sorted(train + test) == list(range(1, 101))
    assert (train, test) == (sorted(train), sorted(test))
    assert len(test) == 10
    assert len(set(split.test.labels.tolist())) > 3


def test_folders_of_pictures_of_other_modes_and_formats_are_read_in_order(tmp_path: Path) -> None:
    own = digit_set(10)
    (tmp_path / "4").mkdir()
    modes = ["L", "RGB", "RGBA", "L", "1", "L", "RGB", "L", "P", "L"]
    suffixes = [".png", ".PNG", ".bmp", ".tif", ".png", ".Tiff", ".tiff", ".gif", ".png", ".BMP"]
    for i in (5, 2, 9, 0, 7, 4, 1, 8, 3, 6):
        image = Image.fromarray(own.images[i] // 200 * 255).convert(modes[i])
        image.save(tmp_path / "4" / f"{i}{suffixes[i]}")
    (tmp_path / "4" / "about.txt").write_text("no picture")

    split = load_split(tmp_path)

    assert (len(split.train), len(split.test)) == (9, 1)
    images = np.concatenate([split.train.images, split.test.images])
    rows = images.any(axis=2).argmax(axis=1).tolist()
    assert rows[:9] == sorted(rows[:9])
    assert sorted(rows) == list(range(4, 14))
    assert (images.max(), set(split.train.labels.tolist())) == (255, {4})


def test_an_object_array_is_never_unpickled(tmp_path: Path) -> None:
    objects = np.full(10, None, dtype=object)
    with pytest.raises(SettingsError, match="cannot be read: Object arrays cannot be loaded when"):
        load_split(npz(x=TEN, y=objects)(tmp_path))


def test_a_folder_of_pictures_is_read_by_label(tmp_path: Path) -> None:
    own = digit_set(10)
    for image, label in zip(own.images, own.labels, strict=True):
        (tmp_path / str(label)).mkdir()
        Image.fromarray(image).save(tmp_path / str(label) / "a.png")

    found = load_split(tmp_path)

    assert sorted(np.concatenate([found.train.labels, found.test.labels])) == list(range(10))
    assert np.array_equal(found.train.images[0], own.images[found.train.labels[0]])


def cut_short(folder: Path) -> Path:
    write_mnist(folder)
    file = folder / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    return folder


def cut_short_and_packed(folder: Path) -> Path:
    write_mnist(folder, ".gz")
    file = folder / "t10k-labels-idx1-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-9])
    return folder


def spoiled_and_packed(folder: Path) -> Path:
    write_mnist(folder, ".gz")
    file = folder / "t10k-images-idx3-ubyte.gz"
    content = bytearray(file.read_bytes())
    content[10:20] = b"\xff" * 10  # right behind the header of gzip
    file.write_bytes(content)
    return folder


def of_another_format(folder: Path) -> Path:
    write_mnist(folder)
    (folder / "t10k-labels-idx1-ubyte").write_bytes(b"\x89PNG and so on")
    return folder


def of_wide_numbers(folder: Path) -> Path:
    write_mnist(folder)
    file = folder / "t10k-labels-idx1-ubyte"
    file.write_bytes(struct.pack(">HBBI", 0, 0x0D, 1, 3) + bytes(3))  # floats, by their kind
    return folder


def with_a_byte_order_mark(folder: Path) -> Path:
    write_mnist(folder)
    file = folder / "t10k-labels-idx1-ubyte"
    file.write_bytes(struct.pack(">HBBI", 0xFEFF, 8, 1, 3) + bytes(3))
    return folder


def with_more_than_it_says(folder: Path) -> Path:
    write_mnist(folder)
    with (folder / "t10k-labels-idx1-ubyte").open("ab") as file:
        file.write(b"!")
    return folder


def empty_file(folder: Path) -> Path:
    write_mnist(folder)
    (folder / "t10k-labels-idx1-ubyte").write_bytes(b"")
    return folder


def without_labels(folder: Path) -> Path:
    write_mnist(folder)
    (folder / "t10k-labels-idx1-ubyte").unlink()
    return folder


def with_other_sizes(folder: Path) -> Path:
    write_mnist(folder)
    write_idx(folder / "train-images-idx3-ubyte", np.ones((7, 32, 30), np.uint8))
    return folder


def npz(**arrays: np.ndarray) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        np.savez(folder / "own.npz", **arrays)  # type: ignore[arg-type]  # no flag is among them
        return folder / "own.npz"

    return write


def no_archive(folder: Path) -> Path:
    (folder / "own.npz").write_bytes(b"PK\x03\x04 cut off")
    return folder / "own.npz"


def encrypted(folder: Path) -> Path:
    path = npz(x=TEN, y=np.arange(10))(folder)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag of the first entry
    path.write_bytes(content)
    return path


def bare_array(folder: Path) -> Path:
    np.save(folder / "own.npy", np.ones((10, 28, 28), np.uint8))
    return folder / "own.npy"


def large_picture(folder: Path) -> Path:
    (folder / "3").mkdir()
    Image.new("L", (30, 32), 255).save(folder / "3" / "a.png")
    return folder


def picture_of_16_bits(folder: Path) -> Path:
    (folder / "3").mkdir()
    Image.fromarray(np.full((28, 28), 20_000, np.uint16)).save(folder / "3" / "a.png")
    return folder


def broken_picture(folder: Path) -> Path:
    (folder / "3").mkdir()
    (folder / "3" / "a.png").write_bytes(b"\x89PNG")
    return folder


def picture_with_a_broken_chunk(folder: Path) -> Path:
    broken_picture(folder)
    write_broken_chunk(folder / "3" / "a.png")
    return folder


def picture_that_promises_too_much(folder: Path) -> Path:
    broken_picture(folder)
    write_promise_of_too_much(folder / "3" / "a.png")
    return folder


TEN = np.ones((10, 28, 28), np.uint8)
BAD_SOURCES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda folder: folder / "nowhere", "there is no such file or folder"),
    "empty folder": (lambda folder: folder, "holds neither train-images-idx3-ubyte .* nor folders"),
    "cut short": (cut_short, r"train-images-idx3-ubyte .* promises 5,488 bytes .* has 5,487"),
    "cut short, packed": (cut_short_and_packed, r"t10k-labels-idx1-ubyte.gz cannot be read"),
    "spoiled, packed": (spoiled_and_packed, r"t10k-images-idx3-ubyte.gz cannot be read: Error -3"),
    "another format": (of_another_format, "does not start as an IDX file of bytes"),
    "another kind": (of_wide_numbers, "does not start as an IDX file of bytes"),
    "another start": (with_a_byte_order_mark, "does not start as an IDX file of bytes"),
    "too long": (
        with_more_than_it_says,
        r"t10k-labels.* promises 3 bytes of shape \(3,\) and has 4",
    ),
    "empty file": (empty_file, "t10k-labels-idx1-ubyte cannot be read"),
    "no labels": (without_labels, "lacks t10k-labels-idx1-ubyte, plain or .gz"),
    "other sizes": (with_other_sizes, r"bytes of shape \(N, 28, 28\), got uint8 of \(7, 32, 30\)"),
    "no archive": (no_archive, "cannot be read"),
    "encrypted": (encrypted, "own.npz: cannot be read: File .* is encrypted"),
    "bare array": (bare_array, "is not an .npz file"),
    "other names": (npz(a=TEN), "holds a; it needs x_train, y_train, x_test and y_test, or x and"),
    "floats": (npz(x=TEN / 2, y=np.arange(10)), r"must be bytes of shape .* got float64"),
    "fewer labels": (npz(x=TEN, y=np.arange(9)), "10 digits need as many labels"),
    "labels above 9": (npz(x=TEN, y=np.arange(10) + 1), "labels must be bytes from 0 to 9"),
    "labels between": (npz(x=TEN, y=np.arange(10) / 2), "labels must be whole numbers"),
    "no labels known": (npz(x=TEN, y=np.full(10, math.nan)), "labels must be whole numbers"),
    "blank": (npz(x=TEN * 0, y=np.arange(10)), "digit 0 is blank, as are 9 others"),
    "too few": (npz(x=TEN[:9], y=np.arange(9)), "a split needs at least 10 digits, got 9"),
    "none": (npz(x=TEN[:0], y=np.arange(0)), "there is no digit in it"),
    "large picture": (large_picture, r"3/a.png is 30x32 pixels; digits are 28x28"),
    "16 bits": (picture_of_16_bits, r"3/a.png has more than 8 bits a pixel \(I.*; digits have"),
    "broken picture": (broken_picture, "3/a.png cannot be read"),
    "broken chunk": (picture_with_a_broken_chunk, "3/a.png cannot be read: broken PNG file"),
    "bomb": (picture_that_promises_too_much, r"3/a.png cannot be read: .*900000000 pixels"),
}


@pytest.mark.parametrize(("make", "message"), BAD_SOURCES.values(), ids=BAD_SOURCES)
def test_bad_sources_are_named(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(SettingsError, match=f"--mnist .*{message}"):
        load_split(make(tmp_path))


def test_labels_are_bytes() -> None:
    with pytest.raises(SettingsError, match="labels must be bytes from 0 to 9"):
        DigitSet(TEN, np.arange(10))  # type: ignore[arg-type]


# Pictures


def paint_like_the_authors(
    digits: DigitSet, scatter: Scatter, seed: int, chosen: list[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures, boxes (row, column, height, width) and labels by the released recipe."""
    random = np.random.RandomState(seed)
    canvas_size, objects = scatter.canvas, scatter.objects
    orders = [random.permutation(len(digits)) for _ in range(objects)]
    places = []
    for _ in range(len(digits) * objects):
        height, width = random.uniform(scatter.min_size, scatter.max_size, 2)
        row = random.uniform(height / 2, canvas_size - height / 2)
        column = random.uniform(width / 2, canvas_size - width / 2)
        places.append((row, column, height, width))
    boxes = np.array(places).reshape(len(digits), objects, 4)
    pictures = []
    for picture in chosen:
        canvas = np.zeros((canvas_size, canvas_size))
        for slot, order in enumerate(orders):
            ink = digits.images[order[picture]]
            rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
            ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            row, column, height, width = boxes[picture, slot]
            x_step, y_step = ink.shape[1] / width, ink.shape[0] / height
            left, top = column - width / 2, row - height / 2
            canvas += np.asarray(
                Image.fromarray(ink.astype(np.float32) / 255).transform(
                    (canvas_size, canvas_size),
                    Image.Transform.AFFINE,
                    (x_step, 0, -left * x_step, 0, y_step, -top * y_step),
                    resample=Image.Resampling.BILINEAR,
                )
            )
        pictures.append(np.minimum(canvas, 1.0))
    labels = np.array([digits.labels[order[chosen]] for order in orders]).T
    return np.stack(pictures), boxes[chosen], labels


@pytest.mark.parametrize(
    ("scatter", "seed"),
    [
        (Scatter(), 0),
        (Scatter(canvas=64, crop=None, objects=2), 1),
        (Scatter(canvas=40, crop=None, objects=4, min_size=15.9, max_size=15.99), 1),
    ],
    ids=["cropped", "whole", "sizes between pixels"],
)
def test_pictures_are_those_of_the_authors_recipe(
    digits: DigitSplit, scatter: Scatter, seed: int
) -> None:
    own, chosen = digits.test[:50], [0, 7, 49]
    pictures, places, labels = paint_like_the_authors(own, scatter, seed, chosen)
    margin = scatter.margin
    kept = slice(margin, margin + scatter.picture_size)
    low, size = places[..., :2] - places[..., 2:] / 2 - margin, places[..., 2:]
    boxes = np.concatenate([low[..., ::-1], (low + size)[..., ::-1]], axis=-1)

    scenes = scatter_digits(own, scatter, count=50, seed=seed)[torch.tensor(chosen)]

    # Half a gray level of rounding.
    expected = torch.from_numpy(pictures[:, None, kept, kept] * 255)
    assert_close(scenes.images.double(), expected, atol=0.51, rtol=0)
    assert_close(scenes.boxes, torch.from_numpy(boxes).float())
    assert scenes.labels.tolist() == labels.tolist()


def test_every_digit_is_seen_once_in_each_place_of_the_list() -> None:
    scenes = scatter_digits(digit_set(10), Scatter(objects=3), count=10, seed=0)
    assert all(sorted(column) == list(range(10)) for column in scenes.labels.T.tolist())


def test_the_first_pictures_do_not_depend_on_how_many_are_made() -> None:
    few = scatter_digits(digit_set(10), Scatter(), count=3, seed=0)
    many = scatter_digits(digit_set(10), Scatter(), count=9, seed=0)

    assert torch.equal(few.images, many.images[:3])
    assert torch.equal(few.boxes, many.boxes[:3])


def test_there_can_be_more_pictures_than_digits() -> None:
    scenes = scatter_digits(digit_set(10), Scatter(), count=25, seed=0)
    assert [len(set(column)) for column in scenes.labels[10:20].T.tolist()] == [10] * 5


def test_a_picture_without_objects_is_black() -> None:
    scenes = scatter_digits(digit_set(3), Scatter(objects=0), count=2, seed=0)
    assert scenes.boxes.shape == (2, 0, 4)
    assert not scenes.images.any()


def test_boxes_that_are_hardly_visible_are_forgotten_if_asked(digits: DigitSplit) -> None:
    whole = scatter_digits(digits.test, Scatter(), count=40, seed=0)
    cut = scatter_digits(digits.test, Scatter(min_visible=0.3), count=40, seed=0)

    share = area(clip(whole.boxes, 64, 64)) / area(whole.boxes)

    assert torch.equal(cut.labels >= 0, share >= 0.3)
    assert 0.1 < float((share == 0).float().mean()) < 0.5  # the paper's recipe has 30.6 %
    assert torch.equal(cut.boxes, clip(whole.boxes, 64, 64))


@pytest.mark.parametrize(
    ("box", "text"),
    [((3, 3, 3, 9), r"\[3.0, 3.0, 3.0, 9.0\]"), ((9, 3, 5, 9), r"\[9.0, 3.0, 5.0, 9.0\]")],
    ids=["no width", "inverted"],
)
def test_boxes_without_area_are_named(box: tuple[float, ...], text: str) -> None:
    boxes = torch.tensor([[[0.0, 0, 5, 5], box]])
    with pytest.raises(ValueError, match=f"box 1 of image 0 has no area: {text}"):
        Scenes(torch.zeros(1, 1, 9, 9, dtype=torch.uint8), boxes, torch.zeros(1, 2).long())
    Scenes(torch.zeros(1, 1, 9, 9, dtype=torch.uint8), boxes, torch.tensor([[0, -1]]))


def test_scenes_name_what_does_not_fit() -> None:
    images = torch.zeros(2, 1, 9, 9, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"bytes of shape \(N, 1, H, W\), got torch.float32"):
        Scenes(images.float(), torch.zeros(2, 0, 4), torch.zeros(2, 0).long())
    with pytest.raises(ValueError, match=r"2 images need boxes \(N, M, 4\) .* got \(1, 0, 4\)"):
        Scenes(images, torch.zeros(1, 0, 4), torch.zeros(1, 0).long())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"objects": -1}, "objects must be at least 0, got -1"),
        ({"canvas": 20}, "0 < min_size <= max_size <= canvas, got 15.0, 25.0 and 20"),
        ({"crop": 121}, "crop must be 1 to canvas = 120 pixels, got 121"),
        ({"min_visible": 0.0}, "min_visible must be above 0 and at most 1, got 0.0"),
    ],
)
def test_sizes_that_do_not_fit_are_named(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scatter(**values)  # type: ignore[arg-type]


# Boxes


def random_boxes(*shape: int, size: float = 30.0) -> Tensor:
    corner = torch.rand(*shape, 2) * size
    return torch.cat([corner, corner + 1 + torch.rand(*shape, 2) * size / 2], dim=-1)


def test_iou_of_hand_computed_boxes() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 2], [4, 0, 8, 2], [5, 5, 5, 5]])
    others = torch.tensor([[2.0, 1, 6, 3], [0, 0, 4, 2], [5, 5, 5, 5]])

    iou = pairwise_iou(boxes, others)

    assert_close(iou, torch.tensor([[1 / 7, 1.0, 0], [1 / 7, 0, 0], [0, 0, 0]]) * 1.0)


def test_decode_undoes_encode() -> None:
    torch.manual_seed(0)
    anchors, boxes = random_boxes(3, 20), random_boxes(3, 20)
    assert_close(decode(anchors, encode(anchors, boxes)), boxes, atol=1e-4, rtol=1e-4)


def test_transforms_are_measured_in_sizes_of_the_anchor() -> None:
    anchor, box = torch.tensor([0.0, 0, 10, 20]), torch.tensor([5.0, 0, 15, 40])
    assert_close(encode(anchor, box), torch.tensor([0.5, 0.5, 0.0, math.log(2)]))


def test_a_wild_transform_stays_finite() -> None:
    assert decode(torch.tensor([0.0, 0, 9, 9]), torch.full((4,), 1e4)).isfinite().all()


def test_sides_grow_62_times_at_most_and_shrink_without_limit() -> None:
    wild = torch.tensor([0.0, 0, 99, -20])
    x1, y1, x2, y2 = decode(torch.tensor([-1.0, -2, 1, 2]).double(), wild.double()).tolist()
    assert (x2 - x1, y2 - y1) == pytest.approx((2 * 62.5, 4 * math.exp(-20)))


def test_iou_does_not_depend_on_the_scale() -> None:
    torch.manual_seed(0)
    boxes, others = random_boxes(7), random_boxes(9)
    assert_close(pairwise_iou(boxes / 64, others / 64), pairwise_iou(boxes, others))


def nms_by_definition(boxes: Tensor, scores: Tensor, threshold: float, limit: int) -> list[int]:
    kept: list[int] = []
    for index in scores.argsort(descending=True).tolist():
        overlaps = [float(pairwise_iou(boxes[[index]], boxes[[other]])) for other in kept]
        if len(kept) < limit and all(overlap <= threshold for overlap in overlaps):
            kept.append(index)
    return kept


def test_nms_of_a_batch_is_that_of_each_picture_by_definition() -> None:
    torch.manual_seed(0)
    boxes, scores = random_boxes(3, 40), torch.rand(3, 40)

    kept, is_there = nms(boxes, scores, 0.05, limit=12)

    for i in range(3):
        expected = nms_by_definition(boxes[i], scores[i], 0.05, 12)
        assert kept[i][is_there[i]].tolist() == expected
    assert not is_there.all()  # some picture runs out of boxes


def test_nms_drops_what_overlaps_by_more_than_the_threshold() -> None:
    boxes = torch.tensor(
        [[[0.0, 0, 4, 8], [0, 0, 4, 4], [0, 0, 4, 5]]]
    )  # 0.5 and 0.625 of the best
    kept, is_there = nms(boxes, torch.tensor([[0.9, 0.5, 0.7]]), 0.5, limit=3)
    assert kept[is_there].tolist() == [0, 1]


def test_nms_of_no_boxes_keeps_none() -> None:
    _, is_there = nms(torch.zeros(2, 0, 4), torch.zeros(2, 0), 0.5, limit=3)
    assert not is_there.any()


def test_nms_never_keeps_what_has_no_score() -> None:
    boxes = random_boxes(1, 3)
    kept, is_there = nms(boxes, torch.tensor([[-torch.inf, -0.1, -torch.inf]]), 1.0, limit=3)
    assert (kept.tolist(), is_there.tolist()) == ([[1, 0, 0]], [[True, False, False]])


def test_nms_on_a_processor_is_our_own_and_a_broken_torchvision_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(importlib, "import_module", broken)
    assert not boxes_module._torchvision_imports.__wrapped__()

    monkeypatch.setattr(boxes_module, "_torchvision_imports", lambda: True)
    monkeypatch.setitem(sys.modules, "torchvision.ops", None)
    kept, _ = nms(torch.tensor([[[0.0, 0, 4, 4]]]), torch.ones(1, 1), 0.5, limit=1)
    assert kept.tolist() == [[0]]


def test_slivers_at_the_border_have_an_area() -> None:
    boxes = torch.tensor([[-9.0, -9, -5, -5], [70, 10, 90, 30], [3, 4, 20, 90]])
    inside = pull_inside(boxes, height=48, width=64)
    assert inside.tolist() == [[0, 0, 1, 1], [62, 10, 63, 30], [3, 4, 20, 47]]


def test_roi_align_reads_a_plane_at_the_middles_of_its_cells() -> None:
    rows, columns = torch.meshgrid(torch.arange(9.0), torch.arange(12.0), indexing="ij")
    plane = torch.stack([3 * rows + columns, columns])[None]  # feature (i, j) lies at pixel + 0.5
    box = torch.tensor([[[8.0, 4, 40, 28]]])  # at scale 1/4: x 2..10, y 1..7

    cells = roi_align(plane, box, 4, scale=0.25)[0, 0]

    x, y = 2 + 2 * (torch.arange(4) + 0.5) - 0.5, 1 + 1.5 * (torch.arange(4) + 0.5) - 0.5
    assert_close(cells[1], x.expand(4, 4))
    assert_close(cells[0], 3 * y[:, None] + x)


def test_roi_align_of_a_batch_is_that_of_each_box_alone() -> None:
    torch.manual_seed(0)
    features, boxes = torch.randn(2, 3, 7, 9), random_boxes(2, 5)

    together = roi_align(features, boxes, 3, scale=0.25)

    for n in range(2):
        for r in range(5):
            alone = roi_align(features[[n]], boxes[n, r][None, None], 3, scale=0.25)
            assert_close(together[n, r], alone[0, 0])


def test_roi_align_averages_a_square_of_points_in_each_cell() -> None:
    torch.manual_seed(0)
    features, boxes = torch.randn(2, 3, 7, 9), random_boxes(2, 5)
    points = roi_align(features, boxes, 6, scale=0.25, samples=1)
    cells = F.avg_pool2d(points.flatten(0, 1), 2).view(2, 5, 3, 3, 3)
    assert_close(roi_align(features, boxes, 3, scale=0.25), cells)


@pytest.mark.parametrize(("axis", "last"), [(0, 4), (1, 2)], ids=["columns", "rows"])
def test_roi_align_takes_the_border_up_to_one_feature_outside(axis: int, last: int) -> None:
    numbers = torch.arange(1.0, 6) if axis == 0 else torch.arange(1.0, 4).view(3, 1)
    features = numbers.expand(1, 1, 3, 5)
    # From the middle of the first feature, which is at 0.5.
    points = torch.tensor([-1.1, -1.0, -0.75, 0.0, last - 0.5, last + 1.0, last + 1.1])
    middles = torch.full((1, len(points), 2), 1.5)
    middles[0, :, axis] = points + 0.5
    boxes = torch.cat([middles - 0.5, middles + 0.5], dim=2)

    cells = roi_align(features, boxes, 1, scale=1.0, samples=1).flatten()

    assert_close(cells, torch.tensor([0, 1, 1, 1, last + 0.5, last + 1, 0]))


def test_roi_align_far_outside_is_zero() -> None:
    far = torch.tensor([[[900.0, 900, 950, 950]]])
    assert not roi_align(torch.ones(1, 2, 7, 9), far, 3, scale=0.25).any()


@pytest.fixture(scope="module")
def torchvision_ops() -> Iterator[Any]:
    """``torchvision.ops``, beside a CPU build of torch with the operators that its wheel lacks.

    Its CPU kernels then come from its Python fallback, and NMS from :func:`nms_by_definition`.
    """
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    if not torch.cuda.is_available():
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

        def one_picture(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
            return torch.tensor(nms_by_definition(boxes, scores, threshold, len(boxes))).long()

        library.impl("nms", one_picture, "CPU")
    ops = importlib.import_module("torchvision.ops")
    if not torch.cuda.is_available():
        ops.boxes._assert_has_ops = lambda: None
    yield ops
    del library  # the operators go with it


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of torch itself
def test_boxes_are_torchvisions(torchvision_ops: Any) -> None:
    torch.manual_seed(0)
    # All within the picture of 28x36 pixels: the kernels of roi_align read 0 far outside of it, the
    # fallback reads the border.
    boxes, scores = random_boxes(2, 30, size=18.0), torch.rand(2, 30)
    features = torch.randn(2, 3, 7, 9)
    scores[0, 3] = -torch.inf
    listed = torch.cat([torch.tensor([[0.0]] * 30 + [[1.0]] * 30), boxes.flatten(0, 1)], dim=1)

    with torch.compiler.set_stance("force_eager"):  # it would compile its fallback for a minute
        cells = torchvision_ops.roi_align(features, listed, 3, 0.25, sampling_ratio=2, aligned=True)
    theirs = torchvision_nms(boxes, scores, 0.3, 9)

    assert_close(roi_align(features, boxes, 3, scale=0.25).flatten(0, 1), cells)
    assert_close(pairwise_iou(boxes[0], boxes[1]), torchvision_ops.box_iou(boxes[0], boxes[1]))
    assert_close(clip(boxes, 20, 30), torchvision_ops.clip_boxes_to_image(boxes, (20, 30)))
    for own, their in zip(nms(boxes, scores, 0.3, 9), theirs, strict=True):
        assert torch.equal(own, their)


# First stage


def test_anchors_lie_around_the_papers_centers() -> None:
    anchors = anchor_boxes(13, 13).view(13, 13, 9, 4)
    centers, sizes = (anchors[..., :2] + anchors[..., 2:]) / 2, anchors[..., 2:] - anchors[..., :2]

    assert centers[0, :, 0, 0].tolist() == list(range(8, 57, 4))
    assert (centers[..., 1] == torch.arange(8.0, 57, 4).view(13, 1, 1)).all()
    assert [tuple(size) for size in sizes[4, 7].flip(-1).tolist()] == [*ANCHOR_SIZES]


def test_released_anchors_are_the_grids_numbers_read_in_the_wrong_order() -> None:
    heights, widths = zip(*ANCHOR_SIZES, strict=True)
    numbers = [*[16] * 9, *[20] * 9, *heights, *widths]  # of the feature in row 2, column 3

    boxes = anchor_boxes(5, 7, layout="released").view(5, 7, 9, 4)[2, 3]

    for box, start in zip(boxes, range(0, 36, 4), strict=True):
        row, column, tall, wide = numbers[start : start + 4]
        expected = [column - wide / 2, row - tall / 2, column + wide / 2, row + tall / 2]
        assert box.tolist() == expected


@pytest.mark.parametrize(("padding", "middle"), [(0, 8.0), ("same", 2.0)], ids=["valid", "same"])
def test_the_middle_of_the_first_feature_follows_from_the_padding(
    padding: Any, middle: float
) -> None:
    specs = (ConvSpec(2, 5, padding=padding, pool=2), ConvSpec(2, 5, padding=padding, pool=2))
    assert feature_spacing(specs) == (4, middle)
    assert feature_spacing((ConvSpec(2, 3, stride=2, padding=1), *specs)) == (8, 2 * middle - 0.5)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_a_kernel_of_even_size_sees_more_behind_than_before() -> None:
    middles = torch.arange(0.5, 20).view(1, 1, -1)
    seen = F.conv1d(middles, torch.full((1, 1, 4), 1 / 4), padding="same")
    stride, middle = feature_spacing((ConvSpec(2, 4, padding="same"),))
    assert (stride, middle) == (1, float(seen[0, 0, 10]) - 10)


@pytest.mark.parametrize(
    ("coords", "parameters"), [("none", 81_590), ("first", 81_590 + 1_600), ("all", 83_838)]
)
def test_the_papers_network_has_the_papers_parameters(coords: Coords, parameters: int) -> None:
    assert count_parameters(build_detector(coords)) == parameters


def test_both_arms_start_at_the_anchors() -> None:
    images = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8)
    for coords in ("none", "first", "all"):
        detector = build_detector(coords)
        transforms, logits = detector.rpn(detector.backbone(images / 255))
        assert not transforms.any()
        assert logits.shape == (2, 13 * 13 * 9, 2)


def test_a_network_of_all_coordinates_tells_two_places_of_a_digit_apart() -> None:
    image = torch.zeros(1, 1, 64, 64)
    image[..., 24:30, 24:27] = 1

    def scores(coords: Coords) -> tuple[Tensor, Tensor]:
        detector = build_detector(coords)
        first = detector.rpn(detector.backbone(image))[1].view(13, 13, 18)
        there = detector.rpn(detector.backbone(image.roll((8, 4), dims=(2, 3))))[1]
        return first[3:7, 3:7], there.view(13, 13, 18)[5:9, 4:8]

    assert_close(*scores("none"))
    here, there = scores("all")
    assert (here - there).abs().max() > 1e-3


EVERYTHING = ProposalSettings(samples=4000)  # as many as there are: nothing is left to chance


def test_sampled_pairs_are_those_of_the_rule() -> None:
    torch.manual_seed(0)
    moved, truth = random_boxes(1, 300, size=60.0), random_boxes(1, 3, size=40.0)
    iou = pairwise_iou(moved[0], truth[0])
    inside = (moved[0] >= 0).all(dim=1) & (moved[0] <= torch.tensor([79, 69, 79, 69])).all(dim=1)
    best = iou.argmax(dim=0).tolist()
    settings = replace(EVERYTHING, positive_iou=0.3)

    sample = sample_boxes(
        moved, truth, torch.ones(1, 3).bool(), settings, (70, 80), torch.Generator()
    )

    pairs = set(
        zip(
            sample.positive[sample.has_positive].tolist(),
            sample.truth[sample.has_positive].tolist(),
            strict=True,
        )
    )
    assert pairs == {(best[m], m) for m in range(3)} | {
        (a, m) for a, m in (iou > 0.3).nonzero().tolist() if inside[a]
    }
    assert len(pairs) > 3
    assert set(sample.negative[sample.has_negative].tolist()) == {
        a for a in range(300) if inside[a] and iou[a].max() < 0.1 and a not in best
    }


def test_half_of_the_samples_are_positive_and_none_comes_twice() -> None:
    torch.manual_seed(0)
    truth = random_boxes(4, 3)
    moved = truth.repeat(1, 100, 1) + torch.rand(4, 300, 1)

    sample = sample_boxes(
        moved,
        truth,
        torch.ones(4, 3).bool(),
        ProposalSettings(),
        (70, 80),
        torch.Generator().manual_seed(0),
    )

    assert sample.has_positive.sum(dim=1).tolist() == [6] * 4
    for boxes, digits in zip(sample.positive.tolist(), sample.truth.tolist(), strict=True):
        assert len(set(zip(boxes, digits, strict=True))) == 6


def test_a_box_that_is_the_best_of_a_digit_is_not_negative_however_little_it_overlaps() -> None:
    truth = torch.tensor([[[0.0, 0, 40, 40]]])
    moved = torch.tensor([[[0.0, 0, 10, 10], [50, 50, 60, 60]]])  # 1/16 of it, and nothing

    sample = sample_boxes(
        moved, truth, torch.ones(1, 1).bool(), ProposalSettings(), (64, 64), torch.Generator()
    )

    assert sample.positive[sample.has_positive].tolist() == [0]
    assert sample.negative[sample.has_negative].tolist() == [1]


def test_without_negatives_all_that_is_in_no_pair_is_one() -> None:
    truth = torch.tensor([[[10.0, 10, 30, 30]]])
    moved = torch.tensor([[[10.0, 10, 30, 30], [20, 20, 40, 40], [25, 10, 45, 30]]])  # all overlap

    sample = sample_boxes(
        moved, truth, torch.ones(1, 1).bool(), ProposalSettings(), (64, 64), torch.Generator()
    )

    assert sample.positive[sample.has_positive].tolist() == [0]
    assert sorted(sample.negative[sample.has_negative].tolist()) == [1, 2]


def test_a_digit_that_nothing_overlaps_takes_the_first_anchor() -> None:
    truth = torch.tensor([[[90.0, 90, 99, 99]]])
    sample = sample_boxes(
        anchor_boxes(13, 13)[None],
        truth,
        torch.ones(1, 1).bool(),
        ProposalSettings(),
        (64, 64),
        torch.Generator(),
    )
    assert sample.positive[sample.has_positive].tolist() == [0]


def test_the_papers_loss_of_transforms_has_a_corner_at_1() -> None:
    off = torch.tensor([[0.5, 0, 0, 0], [1, 0, 0, 0], [-2, 0, 0, 0], [0.5, -0.5, 1, 3]])
    loss = transform_loss(off, torch.zeros(4, 4))
    assert loss.tolist() == [0.25, 1, 2, 0.25 + 0.25 + 1 + 3]


def test_means_are_taken_picture_by_picture() -> None:
    values = torch.tensor([[1.0, 3, torch.nan], [5, torch.nan, torch.nan], [torch.nan] * 3])
    assert mean_of(values, values.isfinite()) == pytest.approx((2 + 5 + 0) / 3)


def small_detector(coords: Coords = "all", *, is_full: bool = False) -> FasterRCNN:
    specs = (ConvSpec(4, 5, pool=2), ConvSpec(6, 5, pool=2))
    roi = RoISettings(grid=2, hidden=8, samples=4000) if is_full else None
    detector = build_detector(coords, specs, EVERYTHING, roi)
    with torch.no_grad():  # away from the anchors, so that every part has a gradient
        for parameter in detector.parameters():
            generator = torch.Generator().manual_seed(1)
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    return detector


def gradients(detector: FasterRCNN, scenes: Scenes) -> list[Tensor]:
    detector.zero_grad()
    detector.losses(scenes, torch.Generator()).total.backward()  # type: ignore[no-untyped-call]
    return [p.grad.clone() for p in detector.parameters() if p.grad is not None]


def test_the_first_stage_learns_which_boxes_show_a_digit() -> None:
    detector = build_detector(proposals=ProposalSettings(samples=7))  # 3 positive, 4 negative
    scorer = detector.rpn.scorer[0]
    with torch.no_grad():
        scorer.weight.zero_()
        scorer.bias.view(-1, 2)[:] = torch.tensor([0.8, 0.2]).log()
    scenes = scenes_of([[16.5, 22, 31.5, 42]], [0])  # an anchor's place and size; many are near

    losses = detector.losses(scenes, torch.Generator())

    expected = -(3 * math.log(0.8) + 4 * math.log(0.2)) / 7
    assert float(losses.proposals.score.detach()) == pytest.approx(expected)


def test_all_losses_are_learned_from(digits: DigitSplit) -> None:
    scenes = scatter_digits(digits.test, Scatter(min_visible=0.2), count=2, seed=0)
    losses = small_detector(is_full=True).losses(scenes, torch.Generator())
    assert losses.roi is not None
    parts = [losses.proposals.box, losses.proposals.score, losses.roi.box, losses.roi.label]
    assert min(float(part.detach()) for part in parts) > 0
    assert_close(losses.total, torch.stack(parts).sum())


@pytest.mark.parametrize("is_full", [False, True], ids=["rpn", "full"])
def test_a_batch_has_the_mean_gradient_of_its_pictures(digits: DigitSplit, is_full: bool) -> None:
    scenes = scatter_digits(digits.test, Scatter(min_visible=0.2), count=3, seed=0)
    detector = small_detector(is_full=is_full)

    alone = [gradients(detector, scenes[i : i + 1]) for i in range(3)]

    together = gradients(detector, scenes)
    for own, *others in zip(together, *alone, strict=True):
        assert_close(own, torch.stack(others).mean(dim=0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("is_full", [False, True], ids=["rpn", "full"])
def test_places_without_a_digit_change_nothing(digits: DigitSplit, is_full: bool) -> None:
    scenes = scatter_digits(digits.test, Scatter(min_visible=0.2), count=2, seed=0)
    padded = Scenes(
        scenes.images,
        torch.cat([torch.zeros(2, 2, 4), scenes.boxes], dim=1),
        torch.cat([torch.full((2, 2), -1), scenes.labels], dim=1),
    )
    detector = small_detector(is_full=is_full)

    for own, other in zip(gradients(detector, scenes), gradients(detector, padded), strict=True):
        assert_close(own, other, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("objects", [0, 2], ids=["no places", "empty places"])
@pytest.mark.parametrize("is_full", [False, True], ids=["rpn", "full"])
def test_pictures_without_digits_teach_that_there_is_nothing(objects: int, is_full: bool) -> None:
    scenes = Scenes(
        torch.zeros(1, 1, 64, 64, dtype=torch.uint8),
        torch.zeros(1, objects, 4),
        torch.full((1, objects), -1),
    )
    detector = small_detector(is_full=is_full)

    losses = detector.losses(scenes, torch.Generator())

    assert losses.proposals.box == 0
    assert losses.proposals.score > 0
    assert all(gradient.isfinite().all() for gradient in gradients(detector, scenes))
    metrics = evaluate(detector, scenes)
    assert math.isnan(metrics["best_iou"])
    assert math.isnan(metrics["recall"])


def test_clipping_measures_overlaps_within_the_picture() -> None:
    detector = build_detector(proposals=ProposalSettings(clip=True, anchor_layout="released"))
    proposals = detector.propose(torch.zeros(1, 1, 64, 64, dtype=torch.uint8))
    assert proposals.boxes.amin() >= 0
    assert proposals.boxes.amax() <= 63
    assert (area(proposals.boxes) > 0).all()


def test_clipping_compares_with_what_of_a_digit_is_in_the_picture() -> None:
    truth = torch.tensor([[[-10.0, 4.0, 10.0, 24.0]]])  # half of it sticks out
    inside = pull_inside(truth, 64, 64)
    scenes = Scenes(torch.zeros(1, 1, 64, 64, dtype=torch.uint8), truth, torch.zeros(1, 1).long())
    exact = Proposals(inside, torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool))

    assert proposal_metrics(exact, scenes, clip_truth=True)["best_iou"] == pytest.approx(1)
    whole = float(pairwise_iou(inside, truth))
    assert whole < 0.6
    assert proposal_metrics(exact, scenes)["best_iou"] == pytest.approx(whole)

    overlaps = []
    for clips in (True, False):
        detector = build_detector(proposals=replace(EVERYTHING, clip=clips))
        features = detector.backbone(torch.zeros(1, 1, 64, 64))
        rpn, size = detector.rpn, (64, 64)
        anchors = rpn.move(rpn.anchors(features), torch.zeros_like(rpn(features)[0]), size)
        losses, *_ = rpn.losses(
            features, truth, torch.ones(1, 1, dtype=torch.bool), size, torch.Generator()
        )
        target = inside if clips else truth
        assert float(losses.iou) <= float(pairwise_iou(anchors, target).max()) + 1e-6
        overlaps.append(float(losses.iou))
    assert overlaps[0] > overlaps[1]


def test_clipped_boxes_are_learned_to_lead_to_whole_digits() -> None:
    # As in the released code, which computes transforms from the boxes that it was given.
    truth, size = torch.tensor([[[54.0, 22.0, 74.0, 42.0]]]), (48, 64)
    detector = build_detector(proposals=replace(EVERYTHING, clip=True))
    rpn, features = detector.rpn, torch.rand(1, 64, 9, 13)
    anchors, is_digit = rpn.anchors(features), torch.ones(1, 1, dtype=torch.bool)
    moved = pull_inside(anchors, *size)[None]
    assert torch.equal(rpn.move(anchors[None], torch.zeros(1, len(anchors), 4), size), moved)
    sample = sample_boxes(
        moved, pull_inside(truth, *size), is_digit, rpn.settings, size, torch.Generator()
    )

    losses, *_ = rpn.losses(features, truth, is_digit, size, torch.Generator())

    start = anchors[sample.positive[sample.has_positive]]
    expected = transform_loss(torch.zeros_like(start), encode(start, truth[0].expand_as(start)))
    assert_close(losses.box.detach(), expected.mean())


def test_nothing_is_detected_where_nothing_is_proposed() -> None:
    heads = RoIHeads(1, RoISettings(grid=1, hidden=4, min_score=0.0))
    boxes = torch.tensor([[[4.0, 4.0, 24.0, 24.0], [30.0, 30.0, 50.0, 50.0]]])
    proposals = Proposals(boxes, torch.ones(1, 2), torch.tensor([[True, False]]))

    found = heads.detect(torch.rand(1, 1, 16, 16), proposals, (64, 64))

    assert int(found.is_there.sum()) == 10  # a box for each digit, of one proposal
    assert (found.scores[found.is_there] > 0).all()


def test_a_detection_is_moved_as_its_class_says_and_is_none_outside_the_picture() -> None:
    heads = RoIHeads(1, RoISettings(grid=1, hidden=4, min_score=0.2))
    heads.start_small()
    with torch.no_grad():
        heads.classifier.bias.fill_(-9.0)[3] = 9.0
        heads.mover.bias.fill_(7.0).view(10, 4)[3] = torch.tensor([5.0, 0, 0, 5 * math.log(2)])
    boxes = torch.tensor([[[4.0, 10.0, 24.0, 20.0], [70.0, 4.0, 90.0, 24.0]]])

    found = heads.detect(
        torch.zeros(1, 1, 16, 16), Proposals(boxes, torch.ones(1, 2), torch.ones(1, 2).bool()),
        (40, 64),
    )  # fmt: skip

    # Half a width, a tenth of five, to the right; twice as high.
    assert_close(found.boxes[found.is_there], torch.tensor([[14.0, 5.0, 34.0, 25.0]]))
    assert found.labels[found.is_there].tolist() == [3]


def test_the_second_stage_reads_features_where_their_middles_are() -> None:
    heads = RoIHeads(1, RoISettings(grid=1, hidden=1), stride=4, offset=8)
    heads.layers = nn.Sequential()
    nn.init.ones_(heads.classifier.weight)
    nn.init.zeros_(heads.classifier.bias)
    middles = 8 + 4 * torch.arange(13.0)  # of the features, in pixels

    logits, _ = heads(middles.expand(1, 1, 9, 13), torch.tensor([[[20.0, 16, 32, 30]]]))

    assert_close(logits, torch.full((1, 1, 11), 26.0))


def test_features_lie_where_the_backbone_has_them() -> None:
    specs = tuple(ConvSpec(channels, 5, padding="same", pool=2) for channels in (4, 6))
    detector = build_detector("none", specs, EVERYTHING, RoISettings(grid=2, hidden=8))
    assert detector.roi_heads is not None
    assert (detector.rpn.stride, detector.rpn.offset) == feature_spacing(specs) == (4, 2)
    assert (detector.roi_heads.stride, detector.roi_heads.offset) == (4, 2)


def test_any_backbone_with_out_channels_will_do() -> None:
    class Pooled(nn.Module):
        out_channels = 1

        def forward(self, images: Tensor) -> Tensor:
            return F.avg_pool2d(images, 4)

    rpn = RegionProposalNetwork(1, ProposalSettings(), stride=4, offset=2)
    detector = FasterRCNN(Pooled(), rpn, RoIHeads(1, RoISettings(hidden=8), stride=4, offset=2))
    found = detector.detect(torch.zeros(2, 1, 40, 64, dtype=torch.uint8))
    assert found.boxes.shape == (2, 20, 4)

    with pytest.raises(ValueError, match="must have an attribute out_channels"):
        FasterRCNN(nn.Identity(), rpn)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), r"\(N, 1, H, W\), got .* \(1, 3, 64, 64\)"),
        (torch.zeros(1, 1, 64, 64), "expects bytes .* got torch.float32"),
        (torch.zeros(1, 1, 9, 64, dtype=torch.uint8), "an input of 9x64 pixels is too small"),
    ],
    ids=["channels", "floats", "small"],
)
def test_pictures_of_other_shapes_are_named(images: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_detector().propose(images)


def test_one_stage_detects_no_digits() -> None:
    with pytest.raises(ValueError, match="no second stage; ask propose"):
        build_detector().detect(torch.zeros(1, 1, 64, 64, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"anchor_layout": "ring"}, "anchor_layout must be one of .* got 'ring'"),
        ({"samples": 1}, "at least 2 samples and 1 proposal, got 1 and 10"),
        ({"nms_iou": 1.5}, r"nms_iou must be in \[0, 1\], got 1.5"),
    ],
)
def test_settings_of_proposals_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProposalSettings(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"grid": 0}, "grid must be at least 1, got 0"),
        ({"samples": 1}, "samples must be at least 2, got 1"),
        ({"min_score": -0.1}, r"min_score must be in \[0, 1\], got -0.1"),
    ],
)
def test_settings_of_the_second_stage_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RoISettings(**values)


# Second stage


def test_detections_of_one_class_suppress_each_other_and_those_of_others_do_not() -> None:
    heads = RoIHeads(1, RoISettings(grid=1, hidden=4, min_score=0.2))
    heads.start_small()
    with torch.no_grad():
        heads.classifier.bias[:] = torch.tensor([0.0] * 10 + [-9.0])
        heads.classifier.bias[[3, 7]] = 9.0  # every proposal shows a 3 and a 7 alike
        heads.mover.bias.zero_()
    boxes = torch.tensor([[[0.0, 0, 20, 20], [1, 1, 21, 21], [40, 40, 60, 60], [2, 2, 9, 9]]])
    is_there = torch.tensor([[True, True, True, False]])

    found = heads.detect(
        torch.zeros(1, 1, 16, 16), Proposals(boxes, torch.ones(1, 4), is_there), (64, 64)
    )

    rows = zip(
        found.labels[found.is_there].tolist(), found.boxes[found.is_there].tolist(), strict=True
    )
    first, last = [0.0, 0, 20, 20], [40.0, 40, 60, 60]
    assert sorted(rows) == [(3, first), (3, last), (7, first), (7, last)]


def test_the_second_stage_learns_nothing_from_what_shows_a_digit_by_less_than_half() -> None:
    heads = RoIHeads(1, RoISettings(grid=1, hidden=4))
    heads.start_small()
    with torch.no_grad():
        heads.mover.bias.fill_(7.0)  # of other digits, which are not asked
        heads.mover.bias[-4:] = 0.25
        heads.classifier.bias[:] = torch.log(torch.tensor([0.01] * 9 + [0.61, 0.3]))
    truth = torch.tensor([[[0.0, 0, 20, 10]]])
    boxes = torch.tensor([[[0.0, 0, 20, 4.5], [0, 0, 20, 5], [60, 60, 70, 64]]])  # 0.45, 0.5, 0
    proposals = Proposals(boxes, torch.ones(1, 3), torch.tensor([[True, True, True]]))

    losses = heads.losses(
        torch.zeros(1, 1, 16, 24), proposals, truth, torch.tensor([[9]]), torch.Generator()
    )

    # The true box and the second show a 9, the first and the third nothing.
    expected = -(2 * math.log(0.61) + 2 * math.log(0.3)) / 4
    assert float(losses.label.detach()) == pytest.approx(expected)
    # The true box needs no move; the second one's middle is a half of its height away, five times
    # its scale; it grows by the logarithm of 2, five times its scale.
    of_true = 4 * 0.25**2
    of_second = 2 * 0.25**2 + (10 * 0.5 - 0.25) + (5 * math.log(2) - 0.25)
    assert float(losses.box.detach()) == pytest.approx((of_true + of_second) / 2)


def test_of_an_odd_number_of_proposals_the_second_stage_learns_more_of_nothing() -> None:
    heads = RoIHeads(1, RoISettings(grid=1, hidden=4, samples=5))  # 2 positive, 3 negative
    heads.start_small()
    with torch.no_grad():
        heads.classifier.bias[:] = torch.log(torch.tensor([0.01] * 9 + [0.61, 0.3]))
    truth = torch.tensor([[[0.0, 0, 20, 10]]])
    boxes = torch.cat([truth.expand(1, 3, 4), truth.expand(1, 6, 4) + 30], dim=1)
    proposals = Proposals(boxes, torch.ones(1, 9), torch.ones(1, 9).bool())

    losses = heads.losses(
        torch.zeros(1, 1, 16, 24), proposals, truth, torch.tensor([[9]]), torch.Generator()
    )

    expected = -(2 * math.log(0.61) + 3 * math.log(0.3)) / 5
    assert float(losses.label.detach()) == pytest.approx(expected)


def test_a_detector_learns_a_few_pictures_by_heart(digits: DigitSplit) -> None:
    scatter = Scatter(canvas=48, crop=None, objects=1)
    scenes = scatter_digits(digits.test, scatter, count=4, seed=0)
    specs = (ConvSpec(12, 5, padding="same", pool=2), ConvSpec(24, 5, padding="same", pool=2))
    detector = build_detector(
        "all", specs, ProposalSettings(samples=32), RoISettings(grid=4, hidden=64)
    )
    optimizer = torch.optim.Adam(detector.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        loss = detector.losses(scenes, generator).total
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    metrics = evaluate(detector, scenes)

    assert metrics["ap50"] > 0.9
    assert metrics["recall"] == 1


# Metrics


def scenes_of(boxes: list[list[float]], labels: list[int], size: int = 64) -> Scenes:
    return Scenes(
        torch.zeros(1, 1, size, size, dtype=torch.uint8),
        torch.tensor([boxes]),
        torch.tensor([labels]),
    )


def test_the_papers_figures_of_hand_computed_proposals() -> None:
    scenes = scenes_of([[0.0, 0, 10, 10], [20, 20, 30, 30], [60, 60, 90, 90]], [1, 2, 3])
    boxes = torch.tensor([[[0.0, 0, 10, 10], [20, 20, 30, 25], [40, 40, 50, 50], [0, 0, 10, 10]]])
    is_there = torch.tensor([[True, True, True, False]])

    metrics = proposal_metrics(Proposals(boxes, torch.ones(1, 4), is_there), scenes)

    assert metrics["best_iou"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert metrics["mean_iou"] == pytest.approx((1 + 0.5) / 9)
    assert metrics["recall"] == 1  # the third digit is outside but for a corner
    assert metrics["proposals"] == 3


def test_what_is_no_digit_is_not_measured() -> None:
    scenes = scenes_of([[0.0, 0, 10, 10], [20, 20, 30, 30]], [1, -1])
    boxes = torch.tensor([[[0.0, 0, 10, 5], [20, 20, 30, 30]]])

    metrics = proposal_metrics(Proposals(boxes, torch.ones(1, 2), torch.ones(1, 2) > 0), scenes)

    assert metrics == {"best_iou": 0.25, "mean_iou": 0.25, "recall": 1.0, "proposals": 2.0}


def test_what_is_visible_is_told_in_pictures_of_unequal_sides() -> None:
    boxes = torch.tensor([[[60.0, 10, 80, 30], [10, 30, 30, 50], [70, 30, 90, 50]]])
    scenes = Scenes(
        torch.zeros(1, 1, 40, 80, dtype=torch.uint8), boxes, torch.tensor([[1, 2, 3]])
    )  # whole; half of it; a quarter of it in the picture
    one = torch.ones(1, 1)
    found = Proposals(torch.tensor([[[9.0, 30, 31, 39]]]), one, one.bool())  # of the second

    metrics = proposal_metrics(found, scenes)
    clipped = proposal_metrics(found, scenes, clip_truth=True)

    overlap = 20 * 9 / (20 * 20 + 22 * 9 - 20 * 9)
    assert metrics["best_iou"] == pytest.approx(overlap)
    assert metrics["recall"] == 0  # of two that are visible, and less than a half covered
    assert clipped["best_iou"] == pytest.approx(20 * 9 / (22 * 9))
    assert clipped["recall"] == 0.5


@pytest.mark.parametrize(
    ("labels", "shift", "expected"),
    [
        ([4, 8], 0.0, {"ap": 1.0, "ap50": 1.0, "ap75": 1.0, "ar": 1.0}),
        ([8, 4], 0.0, {"ap": 0.0, "ap50": 0.0, "ap75": 0.0, "ar": 0.0}),
        # Overlap 8/12 = 0.667: right at the thresholds .50, .55, .60 and .65 of ten.
        ([4, 8], 2.0, {"ap": 0.4, "ap50": 1.0, "ap75": 0.0, "ar": 0.4}),
    ],
    ids=["perfect", "labels exchanged", "shifted"],
)
def test_average_precision_of_hand_computed_detections(
    labels: list[int], shift: float, expected: dict[str, float]
) -> None:
    scenes = scenes_of([[0.0, 0, 10, 10], [20, 20, 30, 30]], [4, 8])
    boxes = scenes.boxes + torch.tensor([shift, 0, shift, 0])
    found = Detections(
        boxes, torch.tensor([[0.9, 0.8]]), torch.tensor([labels]), torch.ones(1, 2).bool()
    )
    assert average_precision(found, scenes) == pytest.approx(expected)


def test_the_recall_of_average_precision_is_of_all_detections() -> None:
    scenes = scenes_of([[0.0, 0, 10, 10]], [4])
    boxes = torch.tensor([[[40.0, 40, 50, 50]] * 12 + [[0.0, 0, 10, 10]]])
    scores = torch.linspace(0.9, 0.1, 13)[None]  # the surest are wrong
    found = Detections(boxes, scores, torch.full((1, 13), 4), torch.ones(1, 13).bool())

    assert average_precision(found, scenes)["ar"] == 1


def test_average_precision_of_nothing() -> None:
    scenes = scenes_of([[0.0, 0, 10, 10]], [4])
    nothing = Detections(
        torch.zeros(1, 1, 4), torch.zeros(1, 1), torch.zeros(1, 1).long(), torch.zeros(1, 1).bool()
    )
    assert average_precision(nothing, scenes)["ap50"] == 0
    empty = replace(scenes, labels=torch.tensor([[-1]]))
    assert math.isnan(average_precision(nothing, empty)["ap50"])


def test_average_precision_asks_for_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"pip install 'coordrl\[detect\]'"):
        Run(replace(SMALL, stage="full"), small_digits())


# Runs

SMALL = DetectorSettings(
    train_images=10,
    test_images=4,
    specs=(ConvSpec(4, 5, pool=2), ConvSpec(4, 5, pool=2)),
    roi=RoISettings(grid=2, hidden=8),
    training=Recipe(batch_size=4, epochs=2),
)


def small_digits() -> DigitSplit:
    return DigitSplit(digit_set(10), digit_set(4, first=10), "14 bars")


def small_run(**changes: Any) -> Run:
    return Run(replace(SMALL, **changes), small_digits())


@pytest.mark.parametrize("stage", ["rpn", "full"])
def test_a_run_is_its_settings(stage: Any) -> None:
    first, second = (small_run(stage=stage, coords="all").train() for _ in range(2))
    for run in (first, second):
        object.__setattr__(run, "curve", [replace(own, cpu_seconds=0.0) for own in run.curve])
    assert repr(first) == repr(second)
    assert [point.step for point in first.curve] == [2, 4]


def test_the_arms_see_the_same_pictures_in_the_same_order() -> None:
    none, coords = small_run(coords="none"), small_run(coords="all")
    assert torch.equal(none.train_scenes.images, coords.train_scenes.images)
    for run in (none, coords):
        run._train_step()
    assert torch.equal(none._batch_indices(), coords._batch_indices())


def test_pictures_have_the_released_generators_seeds_whatever_the_runs() -> None:
    run, split = small_run(seed=5), small_digits()
    for seed, scenes, own, count in (
        (0, run.train_scenes, split.train, 10),
        (1, run.test_scenes, split.test, 4),
    ):
        assert torch.equal(
            scenes.images, scatter_digits(own, Scatter(), count=count, seed=seed).images
        )


def test_each_step_draws_samples_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    run, seeds = small_run(), []
    losses = run.detector.losses

    def watched(scenes: Scenes, generator: torch.Generator) -> Any:
        seeds.append(generator.initial_seed())
        return losses(scenes, generator)

    monkeypatch.setattr(run.detector, "losses", watched)
    for _ in range(3):
        run._train_step()
    assert len(set(seeds)) == 3


def test_a_run_learns_from_digits_for_training_and_is_tested_on_others() -> None:
    ink = np.full((10, 28, 28), 200, np.uint8)
    split = DigitSplit(DigitSet(ink, np.full(10, 1, np.uint8)),
                       DigitSet(ink[:4], np.full(4, 2, np.uint8)), "ones and twos")  # fmt: skip
    run = Run(SMALL, split)
    assert set(run.train_scenes.labels.flatten().tolist()) - {-1} == {1}
    assert set(run.test_scenes.labels.flatten().tolist()) - {-1} == {2}


def test_a_run_notes_its_overlaps_and_steps_as_long_as_the_recipe_says() -> None:
    run, lengths = small_run(), []

    def look(run: Run) -> None:
        lengths.append({group["lr"] for group in run._optimizer.param_groups})

    run.train(on_step=look)

    rate = run.settings.training.learning_rate_at
    assert lengths == [{rate(step / 4)} for step in range(4)]
    assert lengths[0] != lengths[3]
    losses, seen = run.detector.losses, list[float]()

    def fixed(scenes: Scenes, sampling: torch.Generator) -> Any:
        computed = losses(scenes, sampling)
        seen.append(float(computed.total.detach()))
        return replace(computed, proposals=replace(computed.proposals, iou=torch.tensor(0.25)))

    run.detector.losses = fixed  # type: ignore[method-assign, assignment]
    assert run._test_iou_of_pairs() == pytest.approx(0.25)
    run._clock.step = 0
    seen.clear()
    run.train()
    assert run.curve[-1].train_iou == pytest.approx(0.25)
    assert run.curve[-1].loss == pytest.approx((seen[2] + seen[3]) / 2)


class StopAt(StopRequest):
    """Asks to stop once a run has come to a step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def look(self, run: Run) -> None:
        self.signal_number = 15 if run.step == self.step else None


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(tmp_path: Path, step: int) -> None:
    settings = replace(SMALL, coords="all")
    whole = Run(settings, small_digits())
    whole.train()

    with open_run(tmp_path / "run", "") as folder:
        stop = StopAt(step)
        with pytest.raises(Interrupted):
            Run(settings, small_digits(), folder=folder).train(stop=stop, on_step=stop.look)
        resumed = Run(settings, small_digits(), folder=folder)
        assert resumed.step == step
        resumed.train()

    for own, other in zip(resumed.detector.parameters(), whole.detector.parameters(), strict=True):
        assert torch.equal(own, other)
    assert [replace(e, cpu_seconds=0) for e in resumed.curve] == [
        replace(e, cpu_seconds=0) for e in whole.curve
    ]


def damage(run: Run, value: float) -> None:
    with torch.no_grad():
        next(run.detector.rpn.scorer.parameters()).add_(value)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", "") as folder:
        stop = StopAt(2)
        with pytest.raises(Interrupted):
            Run(SMALL, small_digits(), folder=folder).train(stop=stop, on_step=stop.look)
        run = Run(SMALL, small_digits(), folder=folder)
        damage(run, torch.nan)

        message = (
            r"the loss became nan at step 2; the checkpoint of step 2 is kept. Start anew in"
            r" another folder with a training.learning_rate below 0.001"
        )
        with pytest.raises(DivergedError, match=message):
            run.train()

        checkpoint = folder.newest_checkpoint()
        assert checkpoint is not None
        assert checkpoint.step == 2


def test_the_table_goes_on_behind_a_run_that_diverges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiments = Experiments(
        config=write_small_config(tmp_path), out=tmp_path / "runs", digits=small_digits()
    )
    train = Experiments.train

    def spoiled(self: Experiments, settings: DetectorSettings) -> RunResult:
        if settings.coords == "all" and settings.stage == "rpn":
            raise DivergedError("the loss became nan at step 3")
        return train(self, settings)

    monkeypatch.setattr(Experiments, "train", spoiled)
    text = experiments.make_table("quick", tmp_path)

    assert text.count("| rpn |") == 2
    kinds = ("rpn-grid-all-s0", "rpn-released-all-s0")
    told = "; ".join(f"{kind} (the loss became nan at step 3)" for kind in kinds)
    assert f"Diverged, and in no row: {told}." in text
    assert text in (tmp_path / "detection.md").read_text()
    assert len(json.loads((tmp_path / "detection.json").read_text())["diverged"]) == 2


@pytest.mark.parametrize(
    ("sweep", "runs", "name"),
    [
        ('"training.learning_rate" = [0.001, 0.01]', 26, "rpn-grid-none-lr0.01-s0"),
        ('"training.batch_size" = [2, 3, 4]', 30, "rpn-grid-none-batch_size=2-s0"),
    ],
    ids=["step size", "batch size"],
)
def test_a_sweep_may_vary_anything_and_hold_the_recipes_own_value(
    sweep: str, runs: int, name: str, tmp_path: Path
) -> None:
    config = write_small_config(tmp_path)
    config.write_text(f"{config.read_text()}[rpn.sweep]\n{sweep}\n")
    experiments = Experiments(config=config, out=tmp_path, digits=small_digits())
    plan = experiments._plan("full")
    folders = [experiments._folder(settings).name for settings in plan]
    assert len(set(folders)) == len(folders) == runs
    assert name in folders
    results = [replace(result_of("none", 0, 0.5, stage=own.stage), settings=own) for own in plan]
    rows = experiments._write_table(results, tmp_path, "table", planned=runs).splitlines()[2:-1]
    assert len(set(rows)) == len(rows)  # nothing that differs looks alike


@pytest.mark.parametrize("values", ["0.1", "[]"])
def test_a_sweep_of_no_values_is_refused(values: str, tmp_path: Path) -> None:
    config = write_small_config(tmp_path)
    config.write_text(f'{config.read_text()}[rpn.sweep]\n"training.learning_rate" = {values}\n')
    experiments = Experiments(config=config, out=tmp_path, digits=small_digits())
    with pytest.raises(SettingsError, match=r"\[rpn.sweep\]: '.*_rate' must be a list of values"):
        experiments.make_table("full", tmp_path)


def test_what_is_measured_of_test_pictures_does_not_teach() -> None:
    specs = tuple(replace(spec, norm="batch") for spec in SMALL.specs)
    run = small_run(specs=specs)
    before = {name: value.clone() for name, value in run.detector.state_dict().items()}
    run._test_iou_of_pairs()
    assert_close(run.detector.state_dict(), before, rtol=0, atol=0)


def test_test_pictures_are_judged_by_a_detector_in_evaluation() -> None:
    run = small_run(specs=tuple(replace(spec, norm="batch") for spec in SMALL.specs))
    run.train()

    together, _ = find(run.detector, run.test_scenes)

    for i in range(4):
        alone, _ = find(run.detector, run.test_scenes[i : i + 1])
        assert_close(together.boxes[[i]], alone.boxes)
    assert run.curve[-1].test == evaluate(run.detector, run.test_scenes)
    assert run.curve[-1].test != evaluate(run.detector, run.train_scenes)


def test_a_detector_that_cannot_be_built_is_one_sentence() -> None:
    with pytest.raises(SettingsError, match=r"^no detector can be built so: "):
        small_run(specs=(ConvSpec(4, 4, stride=2, transposed=True),))


def test_released_anchors_without_area_are_one_sentence() -> None:
    specs = (ConvSpec(4, 4, stride=2, padding=2),)
    with pytest.raises(SettingsError, match="first feature's is 0; pad less, or take anchors in a"):
        small_run(specs=specs, proposals=ProposalSettings(anchor_layout="released"))
    small_run(specs=specs)


def test_pictures_too_small_for_a_detector_are_one_sentence() -> None:
    with pytest.raises(SettingsError, match="be built so: an input of 4x4 pixels is too small"):
        small_run(scatter=Scatter(crop=4))


def test_a_run_that_diverges_at_once_says_that_nothing_is_kept() -> None:
    run = small_run()
    damage(run, torch.inf)
    with pytest.raises(DivergedError, match="nan at step 0; there is no checkpoint yet"):
        run.train()


def test_batches_of_one_picture_will_do() -> None:
    result = small_run(stage="full", training=Recipe(batch_size=1, epochs=1)).train()
    assert result.curve[-1].step == 10
    assert math.isfinite(result.curve[-1].loss)


def test_too_few_pictures_are_named() -> None:
    with pytest.raises(SettingsError, match=r"at least a batch of 4 pictures .* got 3 and 4"):
        small_run(train_images=3)


def test_pictures_without_digits_make_a_run_too() -> None:
    result = small_run(scatter=Scatter(objects=0)).train()
    assert math.isnan(result.curve[-1].test["best_iou"])


def test_adam_has_its_usual_decays() -> None:
    optimizer = small_run()._optimizer
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)


def test_the_released_optimizer_can_be_had() -> None:
    run = small_run(training=Recipe(optimizer="sgd", batch_size=4, epochs=1))
    assert isinstance(run._optimizer, torch.optim.SGD)
    assert run._optimizer.param_groups[0]["momentum"] == 0.9
    run.train()


@pytest.mark.parametrize("stage", ["rpn", "full"])
def test_half_precision_takes_nearly_the_same_step(stage: Any) -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        recipe = replace(SMALL.training, precision=precision, epochs=1)
        result = small_run(stage=stage, training=recipe).train()
        losses.append(result.curve[-1].loss)
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_the_step_size_goes_down_a_cosine() -> None:
    recipe = Recipe(learning_rate=2.0)
    sizes = [recipe.learning_rate_at(fraction) for fraction in (0, 0.5, 1)]
    assert sizes == pytest.approx([2, 1, 0])
    assert replace(recipe, decay="none").learning_rate_at(1) == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs=0", "epochs must be at least 1, got 0"),
        ("training.learning_rate=0", "learning_rate must be positive, got 0"),
        ("scatter.canvas=20", "0 < min_size <= max_size <= canvas"),
        ("proposals.anchors=3", "unknown key 'proposals.anchors'"),
        ("coords=some", 'must be one of "none", "first", "all"'),
    ],
)
def test_settings_that_do_not_fit_are_named(override: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_detector_settings(CONFIG, "rpn", (parse_override(override),))


def test_the_configuration_holds_the_papers_network_and_a_whole_one() -> None:
    rpn, full = (load_detector_settings(CONFIG, stage) for stage in ("rpn", "full"))

    assert rpn.proposals == ProposalSettings(clip=True)
    assert rpn.scatter == Scatter()
    assert full.scatter == Scatter(canvas=64, crop=None, objects=2, min_visible=0.3)
    assert [
        point.value
        for point in Experiments(config=CONFIG, out=ROOT, digits=small_digits())._sweep()
    ] == [
        1e-3,
        3e-4,
    ]
    assert full.specs[0] == ConvSpec(32, 5, padding="same", pool=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[rnp]\n", r"expects the tables \[rpn\] and \[full\], got 'rnp'"),
        ("[", "is not valid TOML"),
    ],
)
def test_a_bad_configuration_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(SettingsError, match=f"own.toml.*{message}"):
        load_detector_settings(tmp_path / "own.toml", "rpn")


# Tables and figures


def result_of(coords: Coords, seed: int, iou: float, **changes: Any) -> RunResult:
    test = {"best_iou": iou, "mean_iou": iou / 5, "recall": 0.5, "proposals": 10.0}
    if changes.get("stage") == "full":
        test |= {"ap": 0.5, "ap50": 0.9, "ap75": 0.6, "ar": 0.7}
    point = Evaluation(step=4, cpu_seconds=1.0, loss=1.0, train_iou=0.7, test=test)
    settings = replace(SMALL, coords=coords, seed=seed, **changes)
    return RunResult(settings, 81_590, "14 bars", (point,), 0.6, 1, "cpu")


def test_the_gain_is_that_of_pairs_of_runs_with_the_same_seed() -> None:
    results = [
        result_of("none", 0, 0.50),
        result_of("all", 0, 0.60),
        result_of("none", 1, 0.25),
        result_of("all", 1, 0.35),
        result_of("all", 2, 0.99),  # has no pair
    ]

    (gain,) = table.gains(results)

    assert gain.seeds == (0, 1)
    assert gain.ratio.mean == pytest.approx(math.sqrt(1.2 * 1.4))
    # t of 1 degree of freedom is 12.706; two numbers have half their distance as standard error.
    reach = 12.7062 * math.log(1.4 / 1.2) / 2
    assert math.log(gain.ratio.high / gain.ratio.mean) == pytest.approx(reach, abs=1e-4)
    assert gain.ratio.high / gain.ratio.mean == pytest.approx(gain.ratio.mean / gain.ratio.low)


def test_there_is_no_gain_over_a_run_that_covers_nothing() -> None:
    nothing, learned = result_of("none", 0, 0.0), result_of("none", 1, 0.5)
    both = [result_of("all", 0, 0.6), result_of("all", 1, 0.6)]

    assert table.gains([nothing, both[0]]) == []
    (gain,) = table.gains([nothing, learned, *both])
    assert (gain.seeds, gain.left_out) == ((1,), 1)
    assert "1 pair(s) of runs, 1 left out;" in table.to_markdown([nothing, learned, *both])


def test_swept_step_sizes_are_compared_like_with_like_and_best_with_best() -> None:
    def swept(coords: Coords, rate: float, iou: float) -> RunResult:
        recipe = replace(SMALL.training, learning_rate=rate)
        return result_of(coords, 0, iou, training=recipe)

    found = table.gains(
        [
            *(swept("none", 0.1, 0.2), swept("none", 0.2, 0.5)),
            *(swept("all", 0.1, 0.6), swept("all", 0.2, 0.4)),
        ]
    )

    ratios = {gain.learning_rates: gain.ratio.mean for gain in found}
    assert ratios == pytest.approx({(0.1, 0.1): 3.0, (0.2, 0.2): 0.8, (0.2, 0.1): 1.2})


def test_the_table_has_a_row_for_each_kind_and_says_what_the_paper_has() -> None:
    results = [
        result_of("none", 0, 0.5),
        result_of("all", 0, 0.6),
        result_of("all", 0, 0.8, stage="full"),
    ]

    text = table.to_markdown(results)

    assert text.count("| rpn | 5 digits, 64 px, cropped | grid | ") == 2
    assert "| 0.900 | 0.500 |" in text
    assert "coords=all: test IOU of proposals +20.0 % against none, 1 pair(s)" in text
    assert "the paper: about +24.0 %" in text
    assert json.loads(json.dumps(table.to_json(results)))["rows"][0]["parameters"] == 81_590
    with pytest.raises(ValueError, match="runs of one kind"):
        table.summarize(results)
    with pytest.raises(ValueError, match=r"a run of each seed, got seeds \(0, 0\)"):
        table.summarize([results[0], results[0]])


@pytest.mark.parametrize(
    "change",
    [
        {"specs": (*SMALL.specs, ConvSpec(8, 1))},
        {"roi": replace(SMALL.roi, hidden=9)},
        {"train_images": SMALL.train_images + 1},
        {"digits": "of another folder"},
    ],
    ids=["specs", "roi", "train_images", "digits"],
)
def test_runs_that_differ_in_more_than_the_seed_share_no_row(change: dict[str, Any]) -> None:
    results = [result_of("none", 0, 0.5), result_of("none", 1, 0.5, **change)]
    assert len(table.rows_of(results)) == 2
    assert table.gains([results[1], result_of("all", 1, 0.6)]) == []


def test_rows_and_gains_tell_what_else_was_swept() -> None:
    strict = replace(SMALL.proposals, nms_iou=0.5)
    results = [
        *(result_of("none", 0, 0.5), result_of("all", 0, 0.6)),
        *(result_of("none", 0, 0.5, proposals=strict), result_of("all", 0, 0.7, proposals=strict)),
    ]

    text = table.to_markdown(results, ["proposals.nms_iou"])

    assert "| anchors | coords | proposals.nms_iou | parameters |" in text
    for value, gain in ((0.8, "+20.0 %"), (0.5, "+40.0 %")):
        assert f"| grid | all | {value} | 81,590 |" in text
        assert f"- grid anchors, proposals.nms_iou={value}, step size 0.001, coords=all: " in text
        assert f"test IOU of proposals {gain} against none" in text
    record = table.to_json(results, ["proposals.nms_iou"])
    assert [gain["swept"]["proposals.nms_iou"] for gain in record["gains"]] == [0.8, 0.5]


def test_each_number_stands_under_its_name() -> None:
    head, _, row, *_ = table.to_markdown([result_of("all", 0, 0.4, stage="full")]).splitlines()
    cells = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in (head, row)]
    assert dict(zip(*cells, strict=True)) == {
        **{"stage": "full", "pictures": "5 digits, 64 px, cropped", "anchors": "grid"},
        **{"coords": "all", "parameters": "81,590", "seeds": "1", "epochs": "2"},
        **{"step size": "0.001", "train IOU": "0.700", "test IOU of pairs": "0.600"},
        **{"test IOU of proposals": "0.400", "IOU of all pairs": "0.080", "recall": "0.500"},
        **{"AP50": "0.900", "AP": "0.500", "CPU s": "1"},
    }


def test_the_full_table_has_five_seeds_of_each_arm(tmp_path: Path) -> None:
    experiments = Experiments(config=CONFIG, out=tmp_path, digits=small_digits())
    recipe = load_detector_settings(CONFIG, "rpn").training
    kinds = [
        (own.proposals.anchor_layout, own.coords, own.seed)
        for own in experiments._plan("full")
        if own.stage == "rpn" and own.training == recipe
    ]
    assert sorted(kinds) == [
        (layout, coords, seed)
        for layout in ("grid", "released")
        for coords in ("all", "none")
        for seed in range(5)
    ]


def test_what_cannot_be_measured_is_no_number() -> None:
    results = [result_of("none", 0, math.nan), result_of("none", 1, 0.5)]
    assert "| not measurable |" in table.to_markdown(results)


def test_a_run_that_measures_nothing_has_no_gain_and_is_never_best() -> None:
    def swept(coords: Coords, rate: float, iou: float) -> RunResult:
        recipe = replace(SMALL.training, learning_rate=rate)
        return result_of(coords, 0, iou, training=recipe)

    found = table.gains(
        [
            *(swept("none", 0.1, math.nan), swept("none", 0.2, 0.5)),
            *(swept("all", 0.1, 0.6), swept("all", 0.2, math.nan)),
        ]
    )

    assert {gain.learning_rates: gain.ratio.mean for gain in found} == pytest.approx(
        {(0.2, 0.1): 1.2}
    )


def test_a_result_without_a_number_is_read_as_it_was(tmp_path: Path) -> None:
    own = result_of("none", 0, math.nan)
    write_json(own.to_json(), tmp_path / "result.json")
    assert "null" in (tmp_path / "result.json").read_text()
    assert repr(_read_result(tmp_path / "result.json", own.settings)) == repr(own)


def test_rows_and_gains_are_of_the_last_evaluation() -> None:
    runs = []
    arms: list[tuple[Coords, float, float]] = [("none", 0.1, 0.4), ("all", 0.9, 0.5)]
    for coords, first, last in arms:
        early, late = result_of(coords, 0, first), result_of(coords, 0, last)
        runs.append(replace(late, curve=(*early.curve, *late.curve)))

    assert [row.best_iou.mean for row in table.rows_of(runs)] == [0.4, 0.5]
    [gain] = table.gains(runs)
    assert gain.ratio.mean == pytest.approx(1.25)


def test_the_test_iou_is_drawn_against_thousands_of_pictures() -> None:
    figure = figures.learning_curves([result_of("all", 0, 0.4)], ["grid"])
    (line,) = figure.axes[0].lines
    assert np.asarray(line.get_xydata()).tolist() == [[0.016, 0.4]]  # four steps of four pictures


def test_boxes_are_drawn_where_they_are() -> None:
    scenes = scenes_of([[2.0, 3, 8, 9], [0, 0, 4, 4]], [4, -1], size=16)
    proposals = Proposals(
        torch.tensor([[[4.0, 4, 12, 12], [0, 0, 9, 9]]]),
        torch.tensor([[0.9, 0.1]]),
        torch.ones(1, 2).bool(),
    )

    picture = figures.draw_scenes(scenes, proposals, zoom=2)

    assert picture.shape == (2 * 16 * 2, 16 * 2, 3)
    truth, found = picture[:32], picture[32:]
    green, orange = (80, 220, 80), (255, 150, 40)
    assert tuple(truth[6, 4]) == tuple(truth[17, 15]) == green
    assert tuple(found[8, 8]) == tuple(found[23, 23]) == orange
    assert tuple(found[17, 17]) != orange  # the second one is not sure enough

    wider = figures.draw_scenes(scenes, proposals, zoom=2, margin=3)
    assert wider.shape == (2 * 22 * 2, 22 * 2, 3)
    assert tuple(wider[6 + 6, 4 + 6]) == tuple(wider[17 + 6, 15 + 6]) == green


def test_boxes_that_are_not_there_are_not_drawn_and_narrow_ones_are() -> None:
    scenes = scenes_of([[2.0, 3, 8, 9]], [-1], size=16)
    boxes, scores = torch.tensor([[[4.25, 4, 4.75, 9], [6, 6, 12, 12]]]), torch.tensor([[0.5, 0.9]])

    picture = figures.draw_scenes(
        scenes, Proposals(boxes, scores, torch.tensor([[True, False]])), zoom=1
    )

    rows, columns = (picture == (255, 150, 40)).all(axis=2).nonzero()
    # A column of five pixels, below the picture with the true boxes.
    assert (rows.tolist(), columns.tolist()) == ([20, 21, 22, 23, 24], [4] * 5)


def test_scenes_stand_side_by_side_with_pictures_and_boxes_of_their_own() -> None:
    images = torch.zeros(2, 1, 10, 20, dtype=torch.uint8)
    images[0, :, 7, 15], images[1, :, 4, 12] = 100, 200
    true = torch.tensor([[[2.0, 2, 6, 6]], [[3.0, 3, 9, 9]]])
    found = torch.tensor([[[10.0, 1, 14, 5]], [[11.0, 5, 18, 8]]])
    scenes = Scenes(images, true, torch.tensor([[4], [7]]))

    picture = figures.draw_scenes(
        scenes, Proposals(found, torch.ones(2, 1), torch.ones(2, 1).bool()), zoom=2
    )

    assert picture.shape == (2 * 20, 2 * 40, 3)
    green, orange = (80, 220, 80), (255, 150, 40)
    for column, left in enumerate((0, 40)):
        pixel = (images[column, 0] > 0).nonzero()[0] * 2
        for top, box, color in ((0, true[column, 0], green), (20, found[column, 0], orange)):
            panel = picture[top : top + 20, left : left + 40]
            x1, y1, x2, y2 = (int(2 * edge) for edge in box)
            assert tuple(panel[y1, x1]) == tuple(panel[y2 - 1, x2 - 1]) == color
            assert (panel == color).all(axis=2).any(axis=1).nonzero()[0].tolist()[0] == y1
            gray = int(images[column].max())
            assert (panel == gray).all(axis=2).nonzero()[0].min() == pixel[0]
            assert (panel == gray).all(axis=2).nonzero()[1].min() == pixel[1]


def test_detections_are_drawn_with_their_digits_and_proposals_without() -> None:
    scenes = scenes_of([[0.0, 0, 1, 1]], [-1], size=20)
    boxes = torch.tensor([[[2.0, 2, 18, 18]]])
    surely, there = torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)
    proposals = Proposals(boxes + 1, surely, there)

    def orange(label: int | None) -> set[tuple[int, ...]]:
        detections = Detections(boxes, surely, torch.tensor([[label or 0]]), there)
        picture = figures.draw_scenes(
            scenes, proposals, None if label is None else detections, zoom=1
        )[20:]
        return set(map(tuple, np.argwhere(picture[..., 0] > picture[..., 1]).tolist()))

    outline = {(y, x) for y in range(2, 18) for x in range(2, 18) if {y, x} & {2, 17}}
    assert orange(None) == {(y + 1, x + 1) for y, x in outline}
    three, eight = orange(3), orange(8)
    assert three > outline < eight
    assert three != eight


def test_curves_are_drawn_in_the_panel_of_their_anchors() -> None:
    grid = [result_of("none", 0, 0.4), result_of("none", 1, 0.45), result_of("all", 0, 0.5)]
    released = result_of("all", 0, 0.3, proposals=ProposalSettings(anchor_layout="released"))

    figure = figures.learning_curves([*grid, released], ["released", "grid"])

    shown = [[float(np.asarray(line.get_ydata())[0]) for line in a.lines] for a in figure.axes]
    assert shown == [[0.3], [0.4, 0.45, 0.5]]
    assert [axes.get_title() for axes in figure.axes] == ["anchors: released", "anchors: grid"]
    _, labels = figure.axes[1].get_legend_handles_labels()
    assert labels == ["coords='none'", "coords='all'"]
    first, second, other = (line.get_color() for line in figure.axes[1].lines)
    assert first == second != other


def write_small_config(folder: Path) -> Path:
    path = folder / "small.toml"
    spec = "{out_channels = 4, kernel_size = 5, pool = 2}"
    path.write_text(
        "".join(
            f"[{stage}]\ntrain_images = 8\ntest_images = 7\nspecs = [{spec}, {spec}]\n"
            f"roi = {{grid = 2, hidden = 8}}\ntraining = {{batch_size = 4, epochs = 1}}\n"
            for stage in ("rpn", "full")
        )
    )
    return path


def run_script(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = train_detector.main([*arguments, "--threads", "1"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_script_trains_seeds_and_does_not_repeat_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mnist(tmp_path)
    config, runs = str(write_small_config(tmp_path)), str(tmp_path / "runs")
    command = (*("--config", config, "--out", runs), *("--mnist", str(tmp_path), "--coords", "all"))

    code, out, err = run_script(*command, "--seeds", "2", capsys=capsys)
    again = run_script(*command, "--seeds", "2", capsys=capsys)

    assert code == 0
    assert f"digits: 10 digits from {tmp_path}" in err
    assert "| rpn | 5 digits, 64 px, cropped | grid | all |" in out
    name = tmp_path / "runs" / "detection-rpn-grid-all"
    assert len(json.loads(name.with_suffix(".json").read_text())["runs"]) == 2
    assert f"]({name.name}-curves.png)" in name.with_suffix(".md").read_text()
    assert name.with_name(f"{name.name}-curves.png").is_file()
    assert again[1] == out
    assert "steps" not in again[2]
    folder = tmp_path / "runs" / "rpn-grid-all-s1"
    assert (folder / "detections.png").read_bytes().startswith(b"\x89PNG")
    events = EventAccumulator(str(folder))
    events.Reload()
    assert {"train/loss", "test/best_iou", "test/recall"} <= set(events.Tags()["scalars"])
    assert events.Tags()["images"] == ["test"]

    other = run_script(*command, "--set", "train_images=6", capsys=capsys)
    assert other[0] == 2
    assert "other settings: train_images is 8 there and 6 here" in other[2]


def test_the_table_of_all_arms_is_written_with_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mnist(tmp_path)
    report = tmp_path / "report"

    code, out, _ = run_script(
        *("--table", "quick", "--config", str(write_small_config(tmp_path))),
        *("--set", "training.epochs=1", "--mnist", str(tmp_path)),
        *("--out", str(tmp_path / "runs"), "--report", str(report)),
        capsys=capsys,
    )

    assert code == 0
    assert out.count("| rpn |") == 4
    assert out.count("| full |") == 2
    names = {path.name for path in report.iterdir()}
    assert {"detection.md", "detection.json", "detection-curves.png"} < names
    assert "detection-rpn-released-all-s0.png" in names
    record = json.loads((report / "detection.json").read_text())
    assert len(record["runs"]) == 6
    assert record["command"].startswith("python scripts/train_detector.py --table quick --config")

    # What README goes on with, in the same folder.
    code, out, _ = run_script(
        *("--config", str(write_small_config(tmp_path)), "--mnist", str(tmp_path)),
        *("--set", "training.epochs=2", "--out", str(tmp_path / "runs")),
        *("--report", str(report)),
        capsys=capsys,
    )
    assert (code, out.count("| rpn |")) == (0, 1)
    assert json.loads((report / "detection.json").read_text()) == record


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--mnist", "/nowhere"), "--mnist /nowhere: there is no such file or folder"),
        (("--table", "full", "--seeds", "3"), "--seeds would be ignored: the table chooses it"),
        (("--seeds", "0"), "--seeds must be at least 1, got 0"),
        (("--set", "training.epoch=3"), "the nearest is 'training.epochs'"),
        (("--set", "coords=none"), "--set coords would be overruled; use --coords"),
        (
            ("--table", "full", "--set", "training.learning_rate=1"),
            "--set training.learning_rate would be overruled; the table varies it",
        ),
    ],
)
def test_the_script_says_what_is_wrong_in_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run_script(*arguments, "--out", str(tmp_path), capsys=capsys)

    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]
