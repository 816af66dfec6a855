"""The table of the coordinate tasks: runs over seeds, beside the paper's results."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from coordrl.config import dump_settings
from coordrl.coordinates.data import Canvas, InputScale, Split
from coordrl.coordinates.tasks import Goal, TaskName, make_task
from coordrl.coordinates.training import CoordinateSettings, Model, RunResult

THRESHOLDS: Mapping[TaskName, tuple[float, float, float]] = {
    "classification": (0.8, 0.99, 1.0),
    "rendering": (0.5, 0.8, 0.99),
    "regression": (5.0, 0.5, 0.1),
}
"""Values of the main metric that the table has times for, the easiest first."""

# Read off the paper's figures and the authors' blog; the single numbers are approximate.
PAPER: Mapping[tuple[TaskName, Model, Split], str] = {
    ("classification", "conv", "uniform"): "at most 86 %, 80 % after about 4,000 s",
    ("classification", "conv", "quadrant"): "about 0 %",
    ("classification", "coordconv", "uniform"): "100 % in 10 to 20 s",
    ("classification", "coordconv", "quadrant"): "100 % in 10 to 20 s",
    ("rendering", "conv", "uniform"): "at most 0.83, after hours",
    ("rendering", "conv", "quadrant"): "at most 0.36, after hours",
    ("rendering", "coordconv", "uniform"): "about 1.0 in a minute, 0.87 to 1.0",
    ("rendering", "coordconv", "quadrant"): "about 1.0 in a minute, 0.87 to 1.0",
    ("regression", "coordconv", "uniform"): "about 0 px",
    ("regression", "coordconv", "quadrant"): "about 0 px",
}


@dataclass(frozen=True)
class Range:
    """Mean and range of a number over seeds."""

    mean: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Range":
        """Return mean, minimum and maximum; NaN if a value is NaN.

        Example:
            >>> Range.of([1.0, 2.0, 6.0])
            Range(mean=3.0, least=1.0, most=6.0)
        """
        if any(math.isnan(value) for value in values):
            return cls(math.nan, math.nan, math.nan)
        return cls(statistics.fmean(values), min(values), max(values))


@dataclass(frozen=True)
class Row:
    """One task, split and model over its seeds."""

    task: TaskName
    split: Split
    model: Model
    input_scale: InputScale
    parameters: int
    seeds: int
    solved: int
    """Seeds whose final weights solve both training and test set."""
    train: Range
    """Main metric of the final weights on the training set; ``test`` is on the test set."""
    test: Range
    test_of_best: Range
    """Main metric of the weights with the least training loss, on the test set."""
    cpu_seconds: Range
    """Processor time of training."""
    seconds: Range
    """Wall-clock time of training."""
    epochs: Range
    ended: tuple[str, ...]
    """Why each run ended."""
    reached: tuple[int, ...]
    """Seeds that ever reached each of the thresholds on the test set."""
    cpu_seconds_to: tuple[float | None, ...]
    """Median processor time to each threshold, counting seeds that never reached it as slowest;
    None unless more than half reached it."""


def kind(settings: CoordinateSettings) -> str:
    """Return the settings that runs of a row share, all but seed and time limit, as TOML."""
    training = replace(settings.training, max_seconds=None)
    return dump_settings(replace(settings, seed=0, training=training))


def summarize(results: Sequence[RunResult]) -> Row:
    """Return the row of runs that differ only in their seed.

    Raises:
        ValueError: If there is no run, or the runs are not of one kind.
    """
    kinds = {kind(result.settings): result.settings for result in results}
    if len(kinds) != 1:
        got = [f"{own.task}, {own.model}, {own.split}, {own.training}" for own in kinds.values()]
        raise ValueError(f"a row needs runs of one kind, got {'; '.join(got) or 'none'}")
    (own,) = kinds.values()
    task, split, model, input_scale = own.task, own.split, own.model, own.input_scale
    goal = make_task(task, Canvas(), input_scale).goal
    firsts = [
        [result.first_at(goal, threshold) for result in results] for threshold in THRESHOLDS[task]
    ]
    times = [[point.cpu_seconds for point in points if point is not None] for points in firsts]
    return Row(
        task=task,
        split=split,
        model=model,
        input_scale=input_scale,
        parameters=results[0].parameters,
        seeds=len(results),
        solved=sum(_is_solved(result, goal) for result in results),
        train=Range.of([result.last["train"][goal.metric] for result in results]),
        test=Range.of([result.last["test"][goal.metric] for result in results]),
        test_of_best=Range.of([result.best["test"][goal.metric] for result in results]),
        cpu_seconds=Range.of([result.curve[-1].cpu_seconds for result in results]),
        seconds=Range.of([result.curve[-1].seconds for result in results]),
        epochs=Range.of([result.curve[-1].epoch for result in results]),
        ended=tuple(result.ended for result in results),
        reached=tuple(len(reached) for reached in times),
        cpu_seconds_to=tuple(_censored_median(reached, len(results)) for reached in times),
    )


def _censored_median(reached: Sequence[float], seeds: int) -> float | None:
    median = statistics.median([*reached, *[math.inf] * (seeds - len(reached))])
    return median if math.isfinite(median) else None


def _is_solved(result: RunResult, goal: Goal) -> bool:
    return all(goal.is_reached(result.last[part][goal.metric]) for part in ("train", "test"))


@dataclass(frozen=True)
class Ratio:
    """The baseline's time and size relative to the CoordConv net's."""

    task: TaskName
    split: Split
    threshold: float
    time: float | None
    """Baseline's processor time to the threshold over the CoordConv net's; None unless more than
    half of the latter's seeds reached it."""
    is_bound: bool
    """True unless more than half of the baseline's seeds reached it: ``time`` is a lower bound."""
    parameters: float
    """Baseline's parameters over the CoordConv net's."""


def compare(ours: Row, baseline: Row) -> list[Ratio]:
    """Return the ratio to the baseline at each threshold."""
    ratios = []
    for index, threshold in enumerate(THRESHOLDS[ours.task]):
        own, other = ours.cpu_seconds_to[index], baseline.cpu_seconds_to[index]
        spent = other if other is not None else baseline.cpu_seconds.least
        ratios.append(
            Ratio(
                task=ours.task,
                split=ours.split,
                threshold=threshold,
                time=None if own is None else spent / own,
                is_bound=other is None,
                parameters=baseline.parameters / ours.parameters,
            )
        )
    return ratios


def to_markdown(rows: Sequence[Row]) -> str:
    """Write the rows as a table for each task, and the ratios under it."""
    parts = []
    tasks: list[TaskName] = ["classification", "rendering", "regression"]
    for task in tasks:
        own = [row for row in rows if row.task == task]
        if own:
            parts.append(_section(task, own))
    return "\n".join(parts)


def _section(task: TaskName, rows: Sequence[Row]) -> str:
    thresholds = [_value(task, threshold) for threshold in THRESHOLDS[task]]
    unit = {"classification": "accuracy", "rendering": "IOU", "regression": "error"}[task]
    lines = [
        f"## {task.capitalize()}",
        "",
        f"| split | model | places as | parameters | solved | train {unit} | test {unit} (range)"
        f" | test, least loss | epochs | CPU s | wall s | CPU s to {' / '.join(thresholds)}"
        " | paper |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        times = [
            "-" if time is None else _seconds(time) + _share(reached, row.seeds)
            for time, reached in zip(row.cpu_seconds_to, row.reached, strict=True)
        ]
        cut = " (cut short)" if "time" in row.ended else ""
        if "diverged" in row.ended:
            cut = f" ({row.ended.count('diverged')} diverged)"
        cells = [
            row.split,
            row.model,
            "picture" if task == "regression" else row.input_scale,
            f"{row.parameters:,}",
            f"{row.solved} of {row.seeds}",
            _value(task, row.train.mean),
            f"{_value(task, row.test.mean)} ({_value(task, row.test.least)} to"
            f" {_value(task, row.test.most)})",
            _value(task, row.test_of_best.mean),
            f"{row.epochs.mean:.1f}{cut}",
            _seconds(row.cpu_seconds.mean),
            _seconds(row.seconds.mean),
            " / ".join(times),
            PAPER.get((task, row.model, row.split), "-"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", *_ratio_lines(task, rows), ""]
    return "\n".join(lines)


def _ratio_lines(task: TaskName, rows: Sequence[Row]) -> list[str]:
    lines = []
    baselines = {(row.split, row.input_scale): row for row in rows if row.model == "conv"}
    for row in rows:
        baseline = baselines.get((row.split, row.input_scale))
        if row.model == "conv" or baseline is None:
            continue
        times = [
            f"{_times(ratio.time, is_bound=ratio.is_bound)} to {_value(task, ratio.threshold)}"
            for ratio in compare(row, baseline)
            if ratio.time is not None and not (ratio.is_bound and ratio.time < 1.1)
        ]
        size = baseline.parameters / row.parameters
        given = "" if task == "regression" else f", places as {row.input_scale}"
        lines.append(
            f"- {row.split}, {row.model}{given}: the baseline has"
            f" {size:,.1f} times the parameters and takes"
            f" {'; '.join(times) if times else 'a time that cannot be compared'}."
        )
    return lines


def _times(ratio: float, *, is_bound: bool) -> str:
    """Write a ratio in tenths, or whole from 10 on; a lower bound is rounded down."""
    rounded = math.floor if is_bound else round
    shown = f"{rounded(ratio):,}" if ratio >= 10 else f"{rounded(10 * ratio) / 10:g}"
    return f"{'more than ' if is_bound else ''}{shown} times"


def _seconds(time: float) -> str:
    return f"{time:.1f}" if time < 10 else f"{time:,.0f}"


def _share(reached: int, seeds: int) -> str:
    return "" if reached == seeds else f" ({reached} of {seeds})"


@dataclass(frozen=True)
class Misplaced:
    """Fraction of a painter's probability in wrong pixels, summed over all places of a set.

    See :func:`coordrl.coordinates.analysis.total_variation`.
    """

    split: Split
    model: Model
    train: float
    test: float


def misplaced_to_markdown(shares: Sequence[Misplaced], input_scale: InputScale) -> str:
    """Write the fractions as a table, for networks with the same input scale."""
    lines = [
        "## Summed probability maps",
        "",
        "Share of the probability that lies in wrong pixels when the softmax maps of all places are"
        f" added up; classification, places as {input_scale}, seed 0.",
        "",
        "| split | model | train | test |",
        "| --- | --- | ---: | ---: |",
    ]
    for share in shares:
        lines.append(
            f"| {share.split} | {share.model} | {100 * share.train:.1f} % |"
            f" {100 * share.test:.1f} % |"
        )
    return "\n".join(lines) + "\n"


def _value(task: TaskName, value: float) -> str:
    if not math.isfinite(value):
        return "not finite"
    if task == "classification":
        return f"{100 * value:.1f} %"
    return f"{value:.3f}" if task == "rendering" else f"{value:.2f} px"


def to_json(rows: Sequence[Row], results: Sequence[RunResult]) -> dict[str, Any]:
    """Return rows, ratios to the baseline and every run as JSON types."""
    baselines = {(r.task, r.split, r.input_scale): r for r in rows if r.model == "conv"}
    ratios = [
        {"model": row.model, **asdict(ratio)}
        for row in rows
        if row.model != "conv"
        and (baseline := baselines.get((row.task, row.split, row.input_scale))) is not None
        for ratio in compare(row, baseline)
    ]
    return {
        "rows": [asdict(row) for row in rows],
        "ratios": ratios,
        "runs": [result.to_json() for result in results],
    }


TableSize = Literal["quick", "full"]


@dataclass(frozen=True)
class Cell:
    """One planned row of the table: what to train, how often, and with which settings changed."""

    task: TaskName
    model: Model
    split: Split
    input_scale: InputScale
    seeds: int
    max_seconds: float | None = None


def plan(size: TableSize) -> list[Cell]:
    """Return the table's planned rows, the quick tasks first.

    ``"quick"`` takes one seed and cuts every run after 45 s of processor time. ``"full"`` takes
    five seeds, trains all to the end of their recipe, and adds two seeds that see places as raw
    pixels (only for classification: rendering has to classify first). ``--max-seconds`` cuts only
    baselines and runs that see raw pixels.
    """
    seeds, limit = (1, 45.0) if size == "quick" else (5, None)
    tasks: list[TaskName] = ["classification", "regression", "rendering"]
    splits: list[Split] = ["uniform", "quadrant"]
    models: list[Model] = ["robust", "coordconv", "conv"]
    cells = [
        Cell(task, model, split, "unit", seeds, limit)
        for task in tasks
        for model in models
        for split in splits
    ]
    pixel = [
        Cell("classification", model, split, "pixel", 2) for model in models[1:] for split in splits
    ]
    return [*cells, *pixel] if size == "full" else cells
