"""Figures of the coordinate tasks, as in the paper, and of the translation analysis, which is ours.

Every function returns a figure; :func:`save` writes it.
"""

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from coordrl.coordinates.analysis import Trace
from coordrl.coordinates.training import RunResult

_COLORS = {"coordconv": "tab:blue", "robust": "tab:green", "conv": "tab:red"}
_NAMES = {"accuracy": "accuracy", "iou": "IOU", "error": "error in pixels"}


def learning_curves(results: Sequence[RunResult], metric: str) -> Figure:
    """Draw the test metric of runs against the processor time they have trained for.

    Args:
        results: Runs of one task and split, of any models and seeds.
        metric: The task's main metric.
    """
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axes = figure.subplots()
    labeled: set[str] = set()
    for result in results:
        model = result.settings.model
        axes.plot(
            [point.cpu_seconds for point in result.curve],
            [point.test for point in result.curve],
            marker=".",
            color=_COLORS[model],
            label=None if model in labeled else f"{model}, {result.parameters:,} parameters",
            alpha=0.8,
        )
        labeled.add(model)
    axes.set_xscale("log")
    shown = [point.test for result in results for point in result.curve]
    is_log = metric == "error" and any(0 < value < float("inf") for value in shown)
    axes.set_yscale("log" if is_log else "linear")
    axes.set_xlabel("processor seconds of training")
    axes.set_ylabel(f"test {_NAMES[metric]}")
    axes.set_title(f"{results[0].settings.task}, {results[0].settings.split} split")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def probability_maps(
    maps: Mapping[str, tuple[Tensor, Tensor]], misplaced: Mapping[str, tuple[float, float]]
) -> Figure:
    """Draw the summed softmax maps of the training and the test places, each from black to white.

    Args:
        maps: For each name, two maps of shape ``(size, size)``.
        misplaced: For some of the names, the fraction of each map's mass in wrong pixels.
    """
    figure = Figure(figsize=(2.3 * len(maps), 4.8), layout="constrained")
    grid = figure.subplots(2, len(maps), squeeze=False)
    for column, (name, pair) in enumerate(maps.items()):
        for row, (part, values) in enumerate(zip(("train", "test"), pair, strict=True)):
            axes = grid[row][column]
            axes.imshow(values.cpu().numpy(), cmap="gray", vmin=0)
            wrong = f"\n{100 * misplaced[name][row]:.1f} % misplaced" if name in misplaced else "\n"
            axes.set_title(f"{name}, {part}{wrong}", fontsize=9)
            axes.set(xticks=[], yticks=[])
    return figure


def neighbor_logits(logits: Mapping[str, Tensor], center: Tensor, window: int = 8) -> Figure:
    """Draw the logits around a place, for it and the two places to its right.

    Args:
        logits: For each network, the result of
            :func:`coordrl.coordinates.analysis.logits_of_neighbors`.
        center: The first of the places (x, y), in pixels.
        window: Pixels to show on each side.
    """
    figure = Figure(figsize=(6.6, 2.3 * len(logits)), layout="constrained")
    grid = figure.subplots(len(logits), 3, squeeze=False)
    x, y = center.tolist()
    for row, (name, pictures) in enumerate(logits.items()):
        for step, picture in enumerate(pictures.cpu()):
            axes = grid[row][step]
            left, top = max(x - window, 0), max(y - window, 0)
            shown = picture[top : y + window + 1, left : x + window + 1]
            axes.imshow(shown.numpy(), cmap="viridis")
            axes.plot(x + step - left, y - top, "r+")
            axes.set_title(f"{name}: ({x + step}, {y})", fontsize=9)
            axes.set(xticks=[], yticks=[])
    return figure


def sweep_scatter(results: Sequence[RunResult], metric: str) -> Figure:
    """Draw the test against the training metric of each run of a sweep, with the diagonal."""
    figure = Figure(figsize=(4, 4), layout="constrained")
    axes = figure.subplots()
    for model, color in _COLORS.items():
        own = [result for result in results if result.settings.model == model]
        if own:
            axes.scatter(
                [result.last["train"][metric] for result in own],
                [result.last["test"][metric] for result in own],
                color=color,
                label=model,
                alpha=0.7,
            )
    low, high = axes.get_xlim()
    axes.plot([low, high], [low, high], color="gray", linewidth=0.8)
    axes.set_xlabel(f"training {_NAMES[metric]}")
    axes.set_ylabel(f"test {_NAMES[metric]}")
    axes.set_title(f"{results[0].settings.task}, {results[0].settings.split} split")
    axes.legend()
    return figure


def sheets(components: Mapping[str, Tensor], centers: Tensor) -> Figure:
    """Draw each place in the space of a network's activations, colored by x and by y.

    Args:
        components: For each network, two principal components for each place, ``(N, 2)``.
        centers: The places (x, y) in pixels, ``(N, 2)``.
    """
    figure = Figure(figsize=(5, 2.5 * len(components)), layout="constrained")
    grid = figure.subplots(len(components), 2, squeeze=False)
    for row, (name, points) in enumerate(components.items()):
        for column, axis in enumerate("xy"):
            axes = grid[row][column]
            colors = centers[:, column].cpu().numpy()
            first, second = points.cpu().numpy().T
            # Without antialiasing the file is a fifth of the size.
            axes.scatter(first, second, c=colors, s=2, linewidths=0, antialiaseds=False)
            axes.set_title(f"{name}, colored by {axis}", fontsize=9)
            axes.set(xticks=[], yticks=[])
    return figure


def translation(traces: Mapping[str, Trace]) -> Figure:
    """Draw equivariance errors and coordinate-weight ratios during training."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, trace in traces.items():
        color = _COLORS.get(name)
        for index, shift in enumerate(trace.shifts):
            style = (".-", ".--", ".:")[index % 3]
            errors = [row[index] for row in trace.errors]
            left.plot(trace.steps, errors, style, color=color, label=f"{name}, {shift} px")
        if any(trace.ratios):
            right.plot(trace.steps, trace.ratios, ".-", color=color, label=name)
    firsts = [step for trace in traces.values() for step in trace.steps if step > 0]
    for axes in (left, right):
        # Shows step 0, and runs of very different lengths side by side.
        axes.set_xscale("symlog", linthresh=min(firsts, default=1))
        axes.set_xlabel("step")
    left.set_ylabel("equivariance error")
    left.set_ylim(-0.02, 1.02)
    if left.get_legend_handles_labels()[0]:
        left.legend(fontsize=7)
    right.set_ylabel("coordinate over input weights (rms)")
    right.set_ylim(bottom=0)
    if right.get_legend_handles_labels()[0]:
        right.legend(fontsize=8)
    return figure


def ground_truth(centers: Tensor, size: int) -> Tensor:
    """Return the summed map of a network that solves the task: 1 at each place, 0 elsewhere."""
    truth = torch.zeros(size, size)
    truth[centers[:, 1].cpu(), centers[:, 0].cpu()] = 1
    return truth
