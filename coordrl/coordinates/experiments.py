"""Many runs: over seeds, over the paper's grids, and all of them for the table and its figures.

Each run has a folder that belongs to its settings: finished runs are read, stopped runs continue.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from coordrl.config import Override, SettingsError, refuse_overruled
from coordrl.coordinates import analysis, figures, table
from coordrl.coordinates.data import InputScale, Split
from coordrl.coordinates.tasks import Classification, TaskName
from coordrl.coordinates.training import (
    CoordinateSettings,
    Evaluation,
    Model,
    Run,
    RunResult,
    load_coordinate_settings,
    read_table,
)
from coordrl.experiments import (
    ManyRuns,
    each_once,
    may_go_on,
    read_curve,
    require_trained,
    run_folder,
    swept_values,
    train_once,
    watched,
    with_time_of,
)
from coordrl.files import make_folder
from coordrl.records import null_as_nan, provenance, read_json, write_figure, write_json, write_text
from coordrl.runs import RunFolder

TRACE_FILE = "trace.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiments(ManyRuns):
    """Trains runs into subfolders of one folder, and makes tables and figures of them.

    Raises:
        RunError: In all methods, if a folder holds other settings or a file cannot be written.
        SettingsError: In all methods, if a setting does not fit.
    """

    def train_seeds(
        self,
        task: TaskName,
        model: Model,
        split: Split,
        input_scale: InputScale,
        *,
        seeds: int,
        sweep: bool,
        report: Path,
    ) -> str:
        """Train each seed, or each point of the grid with each seed; return the table's row.

        Writes ``<name>.json`` and the figure of the learning curves, or of the grid, to ``report``;
        for classification also the figures of the first seed's network, like :meth:`make_table`.
        """
        self.require_seeds(seeds)
        points = sweep_points(self.config, task, model) if sweep else [()]
        varied = {item.key: "the sweep varies it" for item in points[0]}
        refuse_overruled(self.overrides, varied)
        make_folder(report)
        results = []
        for point, seed in itertools.product(points, range(seeds)):
            settings = self._settings(task, model, split, input_scale, seed, point)
            is_traced = task == "classification" and not sweep and seed == 0
            results.append(self.train(settings, _suffix(point), trace=is_traced))
        name = _name(results[0].settings) + ("-sweep" if sweep else "")
        metric = Run(results[0].settings).task.goal.metric
        groups: dict[str, list[RunResult]] = {}
        for result in results:
            groups.setdefault(table.kind(result.settings), []).append(result)
        record = self._record([table.summarize(own) for own in groups.values()], results)
        if sweep:
            write_figure(figures.sweep_scatter(results, metric), report / f"{name}.png")
            sign = -1 if metric == "error" else 1
            values = [sign * result.last["test"][metric] for result in results]
            top = max(range(len(results)), key=lambda i: (math.isfinite(values[i]), values[i]))
            best = {item.key: item.value for item in points[top // seeds]} | {"seed": top % seeds}
            record["best"] = best
            chosen = ", ".join(f"{key}={value}" for key, value in best.items())
            head = f"best of {len(results)} runs, by the test set, with {chosen}:\n"
            text = head + table.to_markdown([table.summarize([results[top]])])
        else:
            write_figure(figures.learning_curves(results, metric), report / f"{name}.png")
            text = table.to_markdown([table.summarize(results)])
        if task == "classification" and not sweep:
            shares = self._draw_painters([results[0].settings], report, name)
            text += "\n" + table.misplaced_to_markdown(shares, input_scale)
            record["misplaced"] = [dataclasses.asdict(share) for share in shares]
        write_json(record, report / f"{name}.json")
        return text

    def make_table(self, size: table.TableSize, report: Path, max_seconds: float | None) -> str:
        """Train everything that the table needs; write ``coordinates.md``, ``.json`` and figures.

        Args:
            size: ``"quick"`` or ``"full"``.
            report: Folder to write to.
            max_seconds: Processor seconds after which baselines, and runs that see places as
                pixels, are cut short; the table's own limit if None.
        """
        if size == "quick":  # its runs are cut short, and are not continued for the full table
            return dataclasses.replace(self, out=self.out / "quick")._make_table(
                size, report, max_seconds
            )
        return self._make_table(size, report, max_seconds)

    def _make_table(self, size: table.TableSize, report: Path, max_seconds: float | None) -> str:
        plan = table.plan(size)
        for cell in plan:  # first of all, since settings may not fit
            self._cell_settings(cell, 0, max_seconds)
        make_folder(report)
        results: dict[table.Cell, list[RunResult]] = {cell: [] for cell in plan}
        shares: list[table.Misplaced] = []
        # Seed by seed, so that an unfinished table has most of its rows early.
        for seed in range(max(cell.seeds for cell in plan)):
            for cell in plan:
                if seed < cell.seeds:
                    settings = self._cell_settings(cell, seed, max_seconds)
                    is_traced = (cell.task, cell.input_scale, seed) == ("classification", "unit", 0)
                    results[cell].append(self.train(settings, trace=is_traced))
                    self._write_table(results, shares, report)
            shares = shares or self._draw_all_painters(results, report)
            self._draw_curves(results, report)
        return self._write_table(results, shares, report)

    def _cell_settings(
        self, cell: table.Cell, seed: int, max_seconds: float | None
    ) -> CoordinateSettings:
        is_slow = cell.model == "conv" or cell.input_scale == "pixel"
        limit, source = cell.max_seconds, "the table"
        if is_slow and max_seconds is not None:
            limit, source = max_seconds, "--max-seconds"
        point = () if limit is None else (Override("training.max_seconds", limit, source),)
        return self._settings(cell.task, cell.model, cell.split, cell.input_scale, seed, point)

    def train(
        self, settings: CoordinateSettings, suffix: str = "", *, trace: bool = False
    ) -> RunResult:
        """Train one run, continue it, or read its result.

        Args:
            settings: Settings of the run.
            suffix: Appended to the name of its folder.
            trace: Trace how equivariant the network is, which takes as long as an evaluation.

        Raises:
            Interrupted: If a signal asked to stop; the run can be resumed.
        """
        limit = settings.training.max_seconds
        return train_once(
            self._folder(settings, suffix),
            settings,
            read=lambda file: _read_result(file, settings),
            train=lambda folder: self._train(settings, folder, trace=trace),
            goes_on=lambda result: may_go_on(result.ended, result.curve[-1].cpu_seconds, limit),
        )

    def _train(self, settings: CoordinateSettings, folder: RunFolder, *, trace: bool) -> RunResult:
        run = Run(settings, device=self.device, folder=folder)
        follower = _read_trace(folder.path, run) if trace else None
        if follower is not None and run.step == 0:
            follower(run)
        with watched(folder, run.total_steps, "steps", done=run.step) as watch:

            def report(run: Run) -> None:
                last = run.curve[-1] if run.curve else None
                note = "" if last is None else f"test {run.task.goal.metric} {last.test:.3f}"
                watch.progress.update(run.step, note)
                if last is not None and last.step == run.step:
                    _log(watch.tensorboard, last)
                if follower is not None:
                    follower(run)
                    if follower.steps and follower.steps[-1] == run.step:
                        write_json(dataclasses.asdict(follower), folder.path / TRACE_FILE)

            return run.train(stop=watch.stop, on_step=report)

    def _settings(
        self,
        task: TaskName,
        model: Model,
        split: Split,
        input_scale: InputScale,
        seed: int,
        point: Sequence[Override],
    ) -> CoordinateSettings:
        settings = load_coordinate_settings(
            self.config, task, model, split, (*point, *self.overrides)
        )
        return dataclasses.replace(settings, input_scale=input_scale, seed=seed)

    def _folder(self, settings: CoordinateSettings, suffix: str = "") -> Path:
        return self.out / f"{_name(settings)}{suffix}-s{settings.seed}"

    def _record(self, rows: Sequence[table.Row], results: Sequence[RunResult]) -> dict[str, object]:
        return {**provenance(self.command), **table.to_json(rows, results)}

    def _write_table(
        self,
        results: Mapping[table.Cell, Sequence[RunResult]],
        shares: Sequence[table.Misplaced],
        report: Path,
    ) -> str:
        runs = [result for own in results.values() for result in own]
        wanted = sum(cell.seeds for cell in results)
        part = "" if len(runs) == wanted else f" So far {len(runs)} of {wanted} runs are done."
        places = each_once(own.made_on for own in runs)
        head = (
            "# The coordinate tasks\n\n"
            f"Made by `{self.command}` on {places} and"
            f" {runs[-1].threads} thread(s).{part} Times are of training alone; processor time is"
            " the one to compare on a shared machine. A test set decides nothing but when a run"
            " may end. A row that is cut short has runs that were ended by the clock before the"
            " last epoch of their recipe.\n\n"
        )
        rows = [table.summarize(own) for own in results.values() if own]
        text = table.to_markdown(rows)
        record = self._record(rows, runs)
        if shares:
            text += "\n" + table.misplaced_to_markdown(shares, "unit")
            record["misplaced"] = [dataclasses.asdict(share) for share in shares]
        write_text(head + text, report / "coordinates.md")
        write_json(record, report / "coordinates.json")
        return text

    def _draw_curves(self, results: Mapping[table.Cell, Sequence[RunResult]], report: Path) -> None:
        for task, split in dict.fromkeys((cell.task, cell.split) for cell in results):
            own = [
                result
                for cell, runs in results.items()
                if (cell.task, cell.split, cell.input_scale) == (task, split, "unit")
                for result in runs
            ]
            metric = Run(own[0].settings).task.goal.metric
            figure = figures.learning_curves(own, metric)
            write_figure(figure, report / f"coordinates-{task}-{split}.png")

    def _draw_all_painters(
        self, results: Mapping[table.Cell, Sequence[RunResult]], report: Path
    ) -> list[table.Misplaced]:
        """Draw the networks of classification's first seeds, a set of figures for each split."""
        firsts: dict[Split, list[CoordinateSettings]] = {}
        for cell, runs in results.items():
            if (cell.task, cell.input_scale) == ("classification", "unit"):
                firsts.setdefault(cell.split, []).append(runs[0].settings)
        return [
            share
            for split, own in firsts.items()
            for share in self._draw_painters(own, report, f"coordinates-{split}")
        ]

    def _draw_painters(
        self, runs: Sequence[CoordinateSettings], report: Path, name: str
    ) -> list[table.Misplaced]:
        """Draw what trained painters of one split have learned, one painter per model.

        Writes ``<name>-maps.png`` (summed probabilities), ``-neighbors.png`` (logits around three
        places), ``-sheets.png`` (principal components) and ``-translation.png`` (equivariance error
        and weights during training).
        """
        maps: dict[str, tuple[Tensor, Tensor]] = {}
        misplaced: dict[str, tuple[float, float]] = {}
        neighbors: dict[str, Tensor] = {}
        components: dict[str, Tensor] = {}
        traces: dict[str, analysis.Trace] = {}
        for settings in runs:
            run, network, task = self._trained(settings)
            sets, size = (run.train_centers, run.test_centers), settings.canvas.size
            own = [analysis.summed_probabilities(network, task, part) for part in sets]
            truth = [figures.ground_truth(part, size) for part in sets]
            maps.setdefault("truth", (truth[0], truth[1]))
            maps[settings.model] = own[0], own[1]
            train, test = (
                analysis.total_variation(summed, part, settings.canvas)
                for summed, part in zip(own, sets, strict=True)
            )
            misplaced[settings.model] = train, test
            center = torch.tensor([size * 5 // 8] * 2)  # in the quadrant
            neighbors[settings.model] = analysis.logits_of_neighbors(network, task, center)
            centers = torch.cat(sets)
            features = analysis.last_features(network, task, centers)  # type: ignore[arg-type]
            components[settings.model] = analysis.principal_components(features)
            trace = _read_trace(self._folder(settings), run)
            if trace.steps:
                traces[settings.model] = trace
        drawn = {
            "maps": figures.probability_maps(maps, misplaced),
            "neighbors": figures.neighbor_logits(neighbors, center),
            "sheets": figures.sheets(components, centers),
            "translation": figures.translation(traces),
        }
        for kind, figure in drawn.items():
            write_figure(figure, report / f"{name}-{kind}.png")
        return [
            table.Misplaced(settings.split, settings.model, *misplaced[settings.model])
            for settings in runs
        ]

    def _trained(self, settings: CoordinateSettings) -> tuple[Run, nn.Module, Classification]:
        with run_folder(self._folder(settings), settings) as folder:
            run = Run(settings, device=self.device, folder=folder)
        require_trained(run.step, folder)
        assert isinstance(run.task, Classification)
        return run, run.network, run.task


def sweep_points(config: Path, task: TaskName, model: Model) -> list[tuple[Override, ...]]:
    """Return all combinations of the values in the file's table ``[<task>.<model>.sweep]``.

    Raises:
        SettingsError: If there is no such table.
    """
    grid = read_table(config, task, model).get("sweep")
    if not grid:
        raise SettingsError(f"{config} has no table [{task}.{model}.sweep]")
    return list(itertools.product(*swept_values(grid, f"{config}, [{task}.{model}.sweep]")))


def _name(settings: CoordinateSettings) -> str:
    scale = "" if settings.input_scale == "unit" else f"-{settings.input_scale}"
    return f"{settings.task}-{settings.model}-{settings.split}{scale}"


def _suffix(point: Sequence[Override]) -> str:
    return "".join(f"-{item.key.rpartition('.')[2]}={item.value}" for item in point)


def _log(tensorboard: SummaryWriter, point: Evaluation) -> None:
    for name in ("loss", "train", "test"):
        tensorboard.add_scalar(name, getattr(point, name), point.step)


def _read_result(path: Path, settings: CoordinateSettings) -> RunResult:
    def build(record: dict[str, Any]) -> RunResult:
        measured = null_as_nan({name: record[name] for name in ("curve", "last", "best")})
        measured["curve"] = read_curve(measured["curve"], lambda point: Evaluation(**point))
        own = with_time_of(settings, record["settings"])
        return RunResult(**{**record, **measured, "settings": own})

    return read_json(path, build)


def _read_trace(path: Path, run: Run) -> analysis.Trace:
    """Return the trace up to the run's current step."""
    canvas = run.settings.canvas
    trace = analysis.Trace(
        interval=run.settings.training.evaluation_interval,
        shifts=tuple(shift for shift in (1, 4, 16) if shift <= canvas.size - canvas.square),
    )

    def go_on(record: dict[str, Any]) -> None:
        record["errors"] = null_as_nan(record["errors"])
        looks = [step <= run.step for step in record["steps"]]
        for name in ("steps", "errors", "ratios"):
            getattr(trace, name).extend(itertools.compress(record[name], looks))

    if (path / TRACE_FILE).exists():
        read_json(path / TRACE_FILE, go_on)
    return trace
