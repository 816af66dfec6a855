"""Many runs: over seeds, over the paper's grids, and all of them for the table and its figures.

Each run has its folder, which is found again by its settings: what is finished is read, what was
stopped goes on.
"""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from coordrl.config import Override, SettingsError, dump_settings
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
from coordrl.runs import SETTINGS_FILE, Progress, StopRequest, atomic_file, open_run

RESULT_FILE = "result.json"
TRACE_FILE = "trace.json"


class Interrupted(Exception):
    """The user asked to stop; everything is saved."""


@dataclasses.dataclass(frozen=True)
class Experiments:
    """Trains runs into the folders below one, and makes tables and figures of them.

    Raises:
        RunError: In all methods, if a folder holds other settings or a file cannot be written.
        SettingsError: In all methods, if a setting does not fit.
    """

    config: Path
    """Settings of each task and model."""
    out: Path
    """Folder of the runs."""
    device: str = "cpu"
    """Where the networks live."""
    overrides: tuple[Override, ...] = ()
    """Settings that win over the file."""

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

        Writes ``<name>.json`` and the figure of the learning curves, or of the grid, to ``report``.
        """
        if seeds < 1:
            raise SettingsError(f"--seeds must be at least 1, got {seeds}")
        points = sweep_points(self.config, task, model) if sweep else [()]
        results = []
        for point, seed in itertools.product(points, range(seeds)):
            settings = self._settings(task, model, split, input_scale, seed, point)
            results.append(self.train(settings, _suffix(point)))
        name = _name(results[0].settings) + ("-sweep" if sweep else "")
        report.mkdir(parents=True, exist_ok=True)
        metric = Run(results[0].settings).task.goal.metric
        if sweep:
            figures.save(figures.sweep_scatter(results, metric), report / f"{name}.png")
            best = min if metric == "error" else max
            top = best(results, key=lambda result: result.last["test"][metric])
            text = f"best of {len(results)} runs:\n" + table.to_markdown([table.summarize([top])])
        else:
            figures.save(figures.learning_curves(results, metric), report / f"{name}.png")
            text = table.to_markdown([table.summarize(results)])
        record = table.to_json([table.summarize(results)], results)
        _write_json(record, report / f"{name}.json")
        return text

    def make_table(self, size: table.TableSize, report: Path, max_seconds: float | None) -> str:
        """Train everything that the table needs; write ``coordinates.md``, ``.json`` and figures.

        Args:
            size: ``"quick"`` or ``"full"``.
            report: Folder to write to.
            max_seconds: Processor seconds after which a baseline is cut short, if not the table's.
        """
        rows, results = [], []
        for cell in table.plan(size):
            own = []
            limit = max_seconds if cell.model == "conv" and max_seconds else cell.max_seconds
            point = () if limit is None else (Override("training.max_seconds", limit, "the table"),)
            for seed in range(cell.seeds):
                settings = self._settings(
                    cell.task, cell.model, cell.split, cell.input_scale, seed, point
                )
                is_traced = (
                    cell.task == "classification" and cell.input_scale == "unit" and not seed
                )
                own.append(self.train(settings, trace=is_traced))
            rows.append(table.summarize(own))
            results += own
            self._write_table(size, rows, results, report)
        self._draw(results, report)
        return table.to_markdown(rows)

    def train(
        self, settings: CoordinateSettings, suffix: str = "", *, trace: bool = False
    ) -> RunResult:
        """Train one run, go on with it, or read what came of it.

        Args:
            settings: What to run.
            suffix: Appended to the name of its folder.
            trace: Follow how equivariant the network is, which takes as long as an evaluation.

        Raises:
            Interrupted: If Ctrl-C or SIGTERM came; the run can go on.
        """
        path = self._folder(settings, suffix)
        text = dump_settings(settings)
        known = (path / SETTINGS_FILE).exists()
        with open_run(path, text, resume=known, may_differ={"training.max_seconds"}) as folder:
            result_file = path / RESULT_FILE
            if result_file.exists():
                result = _read_result(result_file, settings)
                if not _may_go_on(result, settings):
                    return result
            run = Run(settings, device=self.device, folder=folder)
            follower = _read_trace(path, run) if trace else None
            with (
                StopRequest() as stop,
                SummaryWriter(path) as tensorboard,
                Progress(path.name, run.total_steps, "steps", done=run.step) as progress,
            ):

                def report(run: Run) -> None:
                    last = run.curve[-1] if run.curve else None
                    note = "" if last is None else f"test {run.task.goal.metric} {last.test:.3f}"
                    progress.update(run.step, note)
                    if last is not None and last.step == run.step:
                        _log(tensorboard, last)
                    if follower is not None:
                        follower(run)

                result = run.train(stop=stop, on_step=report)
            if follower is not None:
                _write_json(dataclasses.asdict(follower), path / TRACE_FILE)
            if result.ended == "stopped":
                raise Interrupted
            _write_json(result.to_json(), result_file)
        return result

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

    def _write_table(
        self,
        size: table.TableSize,
        rows: Sequence[table.Row],
        results: Sequence[RunResult],
        report: Path,
    ) -> None:
        report.mkdir(parents=True, exist_ok=True)
        head = (
            "# The coordinate tasks\n\n"
            f"Made by `python scripts/train_coordinates.py --table {size}`; torch"
            f" {torch.__version__}, {results[-1].threads} thread(s). Times are of training alone;"
            " processor time is the one to compare on a shared machine. A test set decides nothing"
            " but when a run may end.\n\n"
        )
        with atomic_file(report / "coordinates.md") as file:
            file.write((head + table.to_markdown(rows)).encode())
        _write_json(table.to_json(rows, results), report / "coordinates.json")

    def _draw(self, results: Sequence[RunResult], report: Path) -> None:
        kinds = dict.fromkeys((r.settings.task, r.settings.split) for r in results)
        for task, split in kinds:
            own = [
                result
                for result in results
                if (result.settings.task, result.settings.split) == (task, split)
                and result.settings.input_scale == "unit"
            ]
            metric = Run(own[0].settings).task.goal.metric
            figure = figures.learning_curves(own, metric)
            figures.save(figure, report / f"coordinates-{task}-{split}.png")
        for split in dict.fromkeys(split for task, split in kinds if task == "classification"):
            self._draw_maps(results, split, report)

    def _draw_maps(self, results: Sequence[RunResult], split: Split, report: Path) -> None:
        """Draw the probability maps, neighbors and principal components of the first seeds."""
        maps: dict[str, tuple[Tensor, Tensor]] = {}
        neighbors: dict[str, Tensor] = {}
        components: dict[str, Tensor] = {}
        traces: dict[str, analysis.Trace] = {}
        center = torch.tensor([40, 40])  # in the quadrant
        for result in results:
            settings = result.settings
            chosen = (settings.task, settings.split, settings.input_scale, settings.seed)
            if chosen != ("classification", split, "unit", 0):
                continue
            run, network, task = self._trained(settings)
            if not maps:
                sizes = settings.canvas.size
                maps["truth"] = (
                    figures.ground_truth(run.train_centers, sizes),
                    figures.ground_truth(run.test_centers, sizes),
                )
            maps[settings.model] = (
                analysis.summed_probabilities(network, task, run.train_centers),
                analysis.summed_probabilities(network, task, run.test_centers),
            )
            neighbors[settings.model] = analysis.logits_of_neighbors(network, task, center)
            centers = torch.cat([run.train_centers, run.test_centers])
            features = analysis.last_features(network, task, centers)  # type: ignore[arg-type]
            components[settings.model] = analysis.principal_components(features)
            traces[settings.model] = _read_trace(self._folder(settings), run)
        figures.save(figures.probability_maps(maps), report / f"coordinates-maps-{split}.png")
        figure = figures.neighbor_logits(neighbors, center)
        figures.save(figure, report / f"coordinates-neighbors-{split}.png")
        figure = figures.sheets(components, centers)
        figures.save(figure, report / f"coordinates-sheets-{split}.png")
        figure = figures.translation(traces)
        figures.save(figure, report / f"coordinates-translation-{split}.png")

    def _trained(self, settings: CoordinateSettings) -> tuple[Run, nn.Module, Classification]:
        with open_run(self._folder(settings), dump_settings(settings), resume=True) as folder:
            run = Run(settings, device=self.device, folder=folder)
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
    source = f"{config}, [{task}.{model}.sweep]"
    return [
        tuple(Override(key, value, source) for key, value in zip(grid, values, strict=True))
        for values in itertools.product(*grid.values())
    ]


def _name(settings: CoordinateSettings) -> str:
    scale = "" if settings.input_scale == "unit" else f"-{settings.input_scale}"
    return f"{settings.task}-{settings.model}-{settings.split}{scale}"


def _suffix(point: Sequence[Override]) -> str:
    return "".join(f"-{item.key.rpartition('.')[2]}={item.value}" for item in point)


def _may_go_on(result: RunResult, settings: CoordinateSettings) -> bool:
    """Tell whether a run that was cut short has been given more time."""
    if result.ended != "time":
        return False
    limit = settings.training.max_seconds
    return limit is None or limit > result.curve[-1].cpu_seconds


def _log(tensorboard: SummaryWriter, point: Evaluation) -> None:
    for name in ("loss", "train", "test"):
        tensorboard.add_scalar(name, getattr(point, name), point.step)


def _read_result(path: Path, settings: CoordinateSettings) -> RunResult:
    record = json.loads(path.read_text(encoding="utf-8"))
    curve = tuple(Evaluation(**point) for point in record.pop("curve"))
    return RunResult(**{**record, "curve": curve, "settings": settings})


def _read_trace(path: Path, run: Run) -> analysis.Trace:
    """Return what was traced up to where the run stands."""
    canvas = run.settings.canvas
    trace = analysis.Trace(
        interval=run.settings.training.evaluation_interval,
        shifts=tuple(shift for shift in (1, 4, 16) if shift <= canvas.size - canvas.square),
    )
    if (path / TRACE_FILE).exists():
        record = json.loads((path / TRACE_FILE).read_text(encoding="utf-8"))
        looks = [step <= run.step for step in record["steps"]]
        for name in ("steps", "errors", "ratios"):
            getattr(trace, name).extend(itertools.compress(record[name], looks))
    return trace


def _write_json(record: object, path: Path) -> None:
    with atomic_file(path) as file:
        file.write(json.dumps(record, indent=1, allow_nan=True).encode())
