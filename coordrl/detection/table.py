"""The table of the detector: runs over seeds, with intervals, and the gain of coordinates."""

import math
import operator
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import scipy.stats

from coordrl.backbone import Coords
from coordrl.detection.rpn import AnchorLayout
from coordrl.detection.training import DetectorSettings, RunResult, Stage

TableSize = Literal["quick", "full"]

PAPER_GAIN = 1.24
"""Test IOU with coordinates over test IOU without, "about 24 % better" in the paper's abstract."""


@dataclass(frozen=True)
class Interval:
    """Mean of a number over seeds and the 95 % interval of that mean, by Student's t.

    A single run has no interval: its ends are NaN.
    """

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        """Return mean and interval.

        Example:
            >>> Interval.of([1.0, 2.0, 3.0])  # doctest: +ELLIPSIS
            Interval(mean=2.0, low=-0.484..., high=4.484...)
        """
        mean = statistics.fmean(values)
        if len(values) < 2 or not math.isfinite(mean):
            return cls(mean, math.nan, math.nan)
        error = statistics.stdev(values) / math.sqrt(len(values))
        reach = float(scipy.stats.t.ppf(0.975, len(values) - 1)) * error
        return cls(mean, mean - reach, mean + reach)

    @classmethod
    def of_ratios(cls, ratios: Sequence[float]) -> "Interval":
        """Return geometric mean and interval; twice and half as much are equally far from 1.

        Example:
            >>> round(Interval.of_ratios([0.5, 2.0]).mean, 6)
            1.0
        """
        logs = cls.of([math.log(ratio) for ratio in ratios])
        return cls(math.exp(logs.mean), math.exp(logs.low), math.exp(logs.high))


@dataclass(frozen=True)
class Row:
    """One kind of detector over its seeds, at the end of training."""

    stage: Stage
    anchor_layout: AnchorLayout
    coords: Coords
    picture_size: int
    objects: int
    is_cropped: bool
    parameters: int
    seeds: tuple[int, ...]
    epochs: int
    learning_rate: float
    train_iou: Interval
    """Overlap of the positive pairs sampled in the last epoch of training."""
    test_iou_of_pairs: Interval
    """The same for pairs sampled in the test pictures."""
    best_iou: Interval
    """Overlap of each proposal with the digit that it overlaps most; the paper's test IOU."""
    mean_iou: Interval
    """Overlap of all proposals with all digits."""
    recall: Interval
    ap50: Interval | None
    """Average precision at an overlap of 0.5, for a detector with a second stage."""
    ap: Interval | None
    """Average precision over overlaps from 0.50 to 0.95."""
    cpu_seconds: Interval
    """Processor time of training."""
    swept: Mapping[str, Any]
    """Further settings that the table varies."""


def kind(result: RunResult) -> DetectorSettings:
    """Return the settings that runs share if they differ only in their seed."""
    return replace(result.settings, seed=0)


def summarize(results: Sequence[RunResult], swept: Sequence[str] = ()) -> Row:
    """Return the row of runs that differ only in their seed.

    Args:
        results: The runs.
        swept: Full names of settings to tell besides those that every row tells.

    Raises:
        ValueError: If there is no run, the runs are not of one kind, or two have the same seed.
    """
    if len({kind(result) for result in results}) != 1:
        raise ValueError(f"a row needs runs of one kind, got {[kind(own) for own in results]}")
    seeds = tuple(result.settings.seed for result in results)
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"a row needs a run of each seed, got seeds {seeds}")
    own = results[0].settings
    last = [result.curve[-1] for result in results]

    def spread(name: str) -> Interval:
        return Interval.of([point.test[name] for point in last])

    is_full = own.stage == "full"
    return Row(
        stage=own.stage,
        anchor_layout=own.proposals.anchor_layout,
        coords=own.coords,
        picture_size=own.scatter.picture_size,
        objects=own.scatter.objects,
        is_cropped=own.scatter.crop is not None,
        parameters=results[0].parameters,
        seeds=seeds,
        epochs=own.training.epochs,
        learning_rate=own.training.learning_rate,
        train_iou=Interval.of([point.train_iou for point in last]),
        test_iou_of_pairs=Interval.of([result.test_iou_of_pairs for result in results]),
        best_iou=spread("best_iou"),
        mean_iou=spread("mean_iou"),
        recall=spread("recall"),
        ap50=spread("ap50") if is_full else None,
        ap=spread("ap") if is_full else None,
        cpu_seconds=Interval.of([point.cpu_seconds for point in last]),
        swept={name: operator.attrgetter(name)(own) for name in swept},
    )


@dataclass(frozen=True)
class Gain:
    """Test IOU with coordinates over test IOU without, for runs with the same anchors."""

    anchor_layout: AnchorLayout
    coords: Coords
    learning_rates: tuple[float, float]
    """Learning rates of the arms without and with coordinates."""
    seeds: tuple[int, ...]
    """Seeds of the pairs of runs, which differ only in the arm and its learning rate."""
    swept: Mapping[str, Any]
    """Further settings that the table varies, equal in each pair."""
    left_out: int
    """Pairs without a ratio: one of the two has no proposals, or they overlap no digit."""
    ratio: Interval


def gains(results: Sequence[RunResult], swept: Sequence[str] = ()) -> list[Gain]:
    """Return the gain of each kind of proposal detector over its counterpart without coordinates.

    If learning rates were swept, the gain between each arm's best follows: the learning rate with
    the greatest test IOU of the first seed, which favors neither arm. Means are of ratios.

    Args:
        results: The runs.
        swept: As for :func:`summarize`.
    """
    curves: dict[tuple[DetectorSettings, Coords], dict[float, dict[int, float]]] = {}
    for result in results:
        own = result.settings
        if own.stage == "rpn":
            # Runs that are compared differ only in the arm and its learning rate.
            recipe = replace(own.training, learning_rate=1.0)
            shared = replace(kind(result), coords="none", training=recipe)
            rates = curves.setdefault((shared, own.coords), {})
            by_seed = rates.setdefault(own.training.learning_rate, {})
            by_seed[own.seed] = result.curve[-1].test["best_iou"]
    found = []
    for (shared, coords), rates in curves.items():
        layout, baseline = shared.proposals.anchor_layout, curves.get((shared, "none"), {})
        if coords == "none" or not baseline:
            continue
        pairs = [(rate, rate) for rate in rates if rate in baseline]
        if len(baseline) > 1 and len(rates) > 1:
            best = (_best_rate(baseline), _best_rate(rates))
            pairs += [] if best in pairs else [best]
        for without, with_coords in pairs:
            before, after = baseline[without], rates[with_coords]
            pairs_of_runs = [seed for seed in after if seed in before]
            seeds = tuple(seed for seed in pairs_of_runs if before[seed] > 0 and after[seed] > 0)
            if seeds:
                left_out = len(pairs_of_runs) - len(seeds)
                ratio = Interval.of_ratios([after[seed] / before[seed] for seed in seeds])
                varied = {name: operator.attrgetter(name)(shared) for name in swept}
                found.append(
                    Gain(layout, coords, (without, with_coords), seeds, varied, left_out, ratio)
                )
    return found


def _best_rate(rates: Mapping[float, Mapping[int, float]]) -> float:
    def first_seed(rate: float) -> float:
        iou = rates[rate].get(0, 0.0)
        return 0.0 if math.isnan(iou) else iou

    return max(rates, key=first_seed)


def to_markdown(results: Sequence[RunResult], swept: Sequence[str] = ()) -> str:
    """Write the rows of runs, in the order of their kinds, and the gains under them."""
    rows = rows_of(results, swept)
    heads = [
        *("stage", "pictures", "anchors", "coords", *swept),
        *("parameters", "seeds", "epochs", "step size"),
        *("train IOU", "test IOU of pairs", "**test IOU of proposals**", "IOU of all pairs"),
        *("recall", "AP50", "AP", "CPU s"),
    ]
    names = 4 + len(swept)
    rule = [*["---"] * names, *["---:"] * (len(heads) - names)]
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, rule)]
    for row in rows:
        cut = "cropped" if row.is_cropped else "whole"
        cells = [
            row.stage,
            f"{row.objects} digits, {row.picture_size} px, {cut}",
            row.anchor_layout,
            row.coords,
            *map(str, row.swept.values()),
            f"{row.parameters:,}",
            str(len(row.seeds)),
            str(row.epochs),
            f"{row.learning_rate:g}",
            *(
                _cell(value)
                for value in (
                    *(row.train_iou, row.test_iou_of_pairs, row.best_iou, row.mean_iou),
                    *(row.recall, row.ap50, row.ap),
                )
            ),
            f"{row.cpu_seconds.mean:,.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    for gain in gains(results, swept):
        ratio, (without, with_coords) = gain.ratio, gain.learning_rates
        interval = (
            "" if math.isnan(ratio.low) else f" ({_percent(ratio.low)} to {_percent(ratio.high)})"
        )
        left_out = f", {gain.left_out} left out" if gain.left_out else ""
        rates = f"{without:g}" if without == with_coords else f"{without:g} and {with_coords:g}"
        varied = "".join(f", {name}={value}" for name, value in gain.swept.items())
        lines.append(
            f"- {gain.anchor_layout} anchors{varied}, step size {rates}, coords={gain.coords}: test"
            f" IOU of proposals {_percent(ratio.mean)}{interval} against none, {len(gain.seeds)}"
            f" pair(s) of runs{left_out}; the paper: about {_percent(PAPER_GAIN)}."
        )
    return "\n".join(lines).rstrip() + "\n"


def rows_of(results: Sequence[RunResult], swept: Sequence[str] = ()) -> list[Row]:
    """Return a row for each kind of run, in the order of first appearance."""
    groups: dict[DetectorSettings, list[RunResult]] = {}
    for result in results:
        groups.setdefault(kind(result), []).append(result)
    return [summarize(group, swept) for group in groups.values()]


def to_json(results: Sequence[RunResult], swept: Sequence[str] = ()) -> dict[str, Any]:
    """Return rows, gains and every run as JSON types."""
    return {
        "rows": [asdict(row) for row in rows_of(results, swept)],
        "gains": [asdict(gain) for gain in gains(results, swept)],
        "paper_gain": PAPER_GAIN,
        "runs": [result.to_json() for result in results],
    }


def _cell(spread: Interval | None) -> str:
    if spread is None:
        return "-"
    if math.isnan(spread.mean):
        return "not measurable"
    if math.isnan(spread.low):
        return f"{spread.mean:.3f}"
    return f"{spread.mean:.3f} ({spread.low:.3f} to {spread.high:.3f})"


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"
