"""The table of the generative models: runs over seeds, beside the data and the paper's numbers."""

import functools
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import torch

from coordrl.generative.data import Canvas, draw_objects, draw_pictures
from coordrl.generative.measures import Row, measure
from coordrl.generative.objectives import ObjectiveName
from coordrl.generative.settings import Arm, GenerativeSettings, Model, Scale
from coordrl.generative.training import Evaluation, RunResult

TableSize = Literal["quick", "small"]
Steps = tuple[float, float]
"""Step sizes of generator and discriminator."""
ARMS: tuple[Arm, Arm] = ("none", "all")
ENTROPIES = ("red", "blue", "difference")
_NAMES = {"none": "without", "all": "with"}

# Figure 7 of the paper, on 64x64 pictures: the best of many runs, and the data.
PAPER = {"data": (4.0, 4.0, 3.5), "without": (3.13, 2.69, 2.81), "with": (3.30, 2.93, 2.62)}

STEP_SIZES: tuple[Steps, ...] = tuple(itertools.product((1e-3, 2e-3, 4e-3), (1e-4, 2e-4, 4e-4)))
"""Step sizes that both arms are tried with, for the paper's loss."""
SEEDS_OF_THE_BEST = 3
"""Seeds of each arm with its best step sizes; all other step sizes have one seed."""


class Cell(NamedTuple):
    """One model of the table, trained in both arms."""

    model: Model
    objective: ObjectiveName
    scale: Scale


def plan(size: TableSize) -> tuple[list[Cell], int]:
    """Return the table's models and the number of seeds.

    ``"small"`` has GANs of 32x32 pixels, but autoencoders of 16x16 like ``"quick"``: at 32x32
    pixels neither autoencoder shows whole objects after 2,000 batches.
    """
    cells = [
        Cell("gan", "paper", size),
        Cell("gan", "r3gan", size),
        Cell("vae", "paper", "quick"),
    ]
    return cells, 1 if size == "quick" else 5


class Kind(NamedTuple):
    """Settings that the runs of one row share; the objective is empty for an autoencoder."""

    model: Model
    objective: str
    data: str
    size: int
    coords: Arm

    @classmethod
    def of(cls, settings: GenerativeSettings) -> "Kind":
        """Return the kind of a run."""
        objective = settings.gan.objective if settings.model == "gan" else ""
        return cls(settings.model, objective, settings.data, settings.canvas.size, settings.coords)

    @property
    def section(self) -> str:
        """Description of the settings that both arms share."""
        name = f"GAN, objective {self.objective}" if self.model == "gan" else "VAE"
        data = "Sort-of-Clevr" if self.data == "clevr" else self.data
        return f"{name}: {data}, {self.size}x{self.size}"


def by_kind(results: Iterable[RunResult]) -> dict[Kind, list[RunResult]]:
    """Return runs by their kind, in the order in which kinds first appear."""
    kinds: dict[Kind, list[RunResult]] = {}
    for result in results:
        kinds.setdefault(Kind.of(result.settings), []).append(result)
    return kinds


def to_markdown(results: Sequence[RunResult]) -> str:
    """Write a section for each model, objective and size: both arms beside the data."""
    kinds = by_kind(results)
    sections = list(dict.fromkeys(kind.section for kind in kinds))
    parts = []
    for section in sections:
        arms = {_NAMES[kind.coords]: own for kind, own in kinds.items() if kind.section == section}
        parts.append(_section(section, arms))
    return "\n".join(parts)


def _section(section: str, arms: dict[str, list[RunResult]]) -> str:
    first = next(iter(arms.values()))[0]
    lines = [f"## {section}", "", *_run_lines(arms), ""]
    if first.settings.data != "clevr":
        return "\n".join([*lines, *_patch_lines(arms), ""])
    if first.settings.model == "gan":
        lines += [*_entropy_lines(arms), "", *_comparison_lines(arms)]
    lines += [*_measure_lines(arms), "", *_motion_lines(arms), ""]
    return "\n".join(lines)


def _run_lines(arms: dict[str, list[RunResult]]) -> list[str]:
    rows = []
    for name, own in arms.items():
        last = [result.curve[-1] for result in own]
        cells = [
            name,
            " + ".join(f"{count:,}" for count in own[0].parameters.values()),
            str(len(own)),
            _spread([point.step for point in last], "{:,.0f}"),
            _spread([point.cpu_seconds for point in last], "{:,.0f}"),
            ", ".join(sorted({result.ended for result in own})),
        ]
        rows.append(cells)
    names = " + ".join(next(iter(arms.values()))[0].parameters)
    return _table(
        ["coordinates", f"parameters: {names}", "seeds", "batches", "CPU s", "ended"], rows
    )


def _entropy_lines(arms: dict[str, list[RunResult]]) -> list[str]:
    rows = []
    for name, own in _with_data(arms).items():
        found = [point.entropies for point in own if point.entropies is not None]
        missing = _spread([100 * one.missing for one in found], "{:.1f} %")
        rows.append([name, *_entropy_cells(own), missing])
    size = next(iter(arms.values()))[0].settings.canvas.size
    if size == 64:
        for name, values in PAPER.items():
            rows.append([f"paper: {name}", *[f"{value:.2f}" for value in values], "-"])
    return _table(["coordinates", *[f"{one}, nats" for one in ENTROPIES], "missing"], rows)


def _comparison_lines(arms: dict[str, list[RunResult]]) -> list[str]:
    """Say what coordinates change, seed by seed."""
    if len(arms) < 2:
        return []
    pairs = [
        (one.curve[-1].entropies, other.curve[-1].entropies)
        for one in arms["with"]
        for other in arms["without"]
        if one.settings.seed == other.settings.seed
    ]
    parts = []
    for which in ENTROPIES:
        gains = [getattr(own, which) - getattr(other, which) for own, other in pairs]
        count = f"higher in {sum(gain > 0 for gain in gains)} of {len(gains)} seeds"
        parts.append(f"{which} {statistics.fmean(gains):+.2f} nats ({count})")
    return [f"With coordinates minus without: {', '.join(parts)}.", ""]


_MEASURES: tuple[tuple[str, Callable[[Row], float | None], str], ...] = (
    ("valid", lambda row: 100 * row.valid[2], "{:.1f} %"),
    ("cells", lambda row: row.cells, "{:.2f}"),
    ("entropy", lambda row: row.entropy, "{:.2f}"),
    ("divergence", lambda row: row.divergence, "{:.3f}"),
    ("distance, px", lambda row: row.wasserstein, "{:.2f}"),
    ("sliced, px", lambda row: row.sliced_wasserstein, "{:.2f}"),
    ("discs", lambda row: row.discs, "{:.2f}"),
    ("recall", lambda row: row.recall, "{:.2f}"),
    ("coverage", lambda row: row.coverage, "{:.2f}"),
    ("duplicates", lambda row: row.duplicates, "{:,.0f}"),
)


def _measure_lines(arms: dict[str, list[RunResult]]) -> list[str]:
    rows = []
    for name, own in _with_data(arms).items():
        rows.append([name, *_measure_cells(_rows(own))])
        if name != "data" and (real := _real_rows(arms[name])):
            rows.append([f"data, as many as valid ones {name}", *_measure_cells(real)])
    return _table(["coordinates", *[name for name, _, _ in _MEASURES]], rows)


def _real_rows(results: Sequence[RunResult]) -> list[Row]:
    """Return a row of equally many real pictures for each run with invalid pictures.

    Most measures depend on the number of pictures: few real pictures fill few cells, too.
    """
    found = []
    for result in results:
        row = result.curve[-1].row
        if row is not None and row.cells is not None and row.valid[2] < 1:
            settings, count = result.settings, round(row.valid[2] * row.pictures)
            found.append(_real_row(settings.canvas, count, row.pictures, settings.seed))
    return found


@functools.cache
def _real_row(canvas: Canvas, count: int, others: int, seed: int) -> Row:
    """Return the row of ``count`` real pictures, compared with ``others`` more."""
    objects, rest = (
        draw_objects(canvas, number, torch.Generator().manual_seed(2 * seed + first))
        for first, number in enumerate((count, others))
    )
    return measure(draw_pictures(objects, canvas), rest, canvas)


def _entropy_cells(points: Sequence[Evaluation]) -> list[str]:
    found = [point.entropies for point in points if point.entropies is not None]
    return [_spread([getattr(one, which) for one in found]) for which in ENTROPIES]


def _rows(points: Sequence[Evaluation]) -> list[Row]:
    return [point.row for point in points if point.row is not None]


def _measure_cells(rows: Sequence[Row]) -> list[str]:
    return [_spread([value(row) for row in rows], form) for _, value, form in _MEASURES]


def _motion_lines(arms: dict[str, list[RunResult]]) -> list[str]:
    columns = ("visible", "whole", "largest_step", "detour", "moved")
    rows = []
    for name, own in arms.items():
        found = [result.motion for result in own if result.motion is not None]
        spreads = [_spread([getattr(motion, column) for motion in found]) for column in columns]
        rows.append([name, *spreads])
    titles = [column.replace("_", " ") for column in columns]
    return _table(["from one picture to another", *titles], rows)


def _patch_lines(arms: dict[str, list[RunResult]]) -> list[str]:
    rows = []
    for name, own in _with_data(arms).items():
        bands = zip(*[[1000 * band for band in point.patches] for point in own], strict=True)
        rows.append([name, *[_spread(list(band), "{:.0f}") for band in bands]])
    bands_of_first = range(len(rows[0]) - 1)
    names = [f"distance of patches x 1,000, size / {2**band}" for band in bands_of_first]
    return _table(["coordinates", *names], rows)


def _with_data(arms: dict[str, list[RunResult]]) -> dict[str, list[Evaluation]]:
    """Return the evaluations of real pictures, then the last ones of both arms."""
    first = next(iter(arms.values()))
    last = {name: [result.curve[-1] for result in own] for name, own in arms.items()}
    return {"data": [result.real for result in first], **last}


def best_steps(results: Iterable[RunResult]) -> Steps:
    """Return the step sizes of the run whose three final entropies have the highest mean.

    Args:
        results: Runs on Sort-of-Clevr; other pictures have no entropies.
    """

    def mean_entropy(result: RunResult) -> float:
        entropies = result.curve[-1].entropies
        assert entropies is not None
        return statistics.fmean(getattr(entropies, which) for which in ENTROPIES)

    return _steps(max(results, key=mean_entropy))


def steps_to_markdown(results: Sequence[RunResult]) -> str:
    """Write a row for each pair of step sizes and arm, below a row of real pictures."""
    groups: dict[tuple[Steps, Arm], list[RunResult]] = {}
    for result in results:
        groups.setdefault((_steps(result), result.settings.coords), []).append(result)

    def row(names: Sequence[str], points: Sequence[Evaluation]) -> list[str]:
        return [*names, *_entropy_cells(points), *_measure_cells(_rows(points))]

    rows = [row(["data", "", "", ""], [results[0].real])]
    for ((generator, discriminator), coords), own in groups.items():
        names = [f"{generator:g}", f"{discriminator:g}", _NAMES[coords], str(len(own))]
        rows.append(row(names, [result.curve[-1] for result in own]))
    titles = ["generator's step", "discriminator's", "coordinates", "seeds"]
    titles += [*[f"{one}, nats" for one in ENTROPIES], *[name for name, _, _ in _MEASURES]]
    return "\n".join([*_table(titles, rows), ""])


def _steps(result: RunResult) -> Steps:
    gan = result.settings.gan
    return gan.generator_lr, gan.discriminator_lr


def _spread(values: Sequence[float | None], form: str = "{:.2f}") -> str:
    """Write the mean over seeds, followed by the range if values differ."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return "not measurable"
    least, most = form.format(min(known)), form.format(max(known))
    mean = form.format(statistics.fmean(known))
    lost = len(values) - len(known)
    return (mean if least == most else f"{mean} ({least} to {most})") + (
        f", {lost} not measurable" if lost else ""
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
