"""Many runs: over seeds, and all of them for the table and its pictures.

Each run has a folder that belongs to its settings: finished runs are read, stopped runs continue.
"""

import dataclasses
import itertools
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from torch.utils.tensorboard import SummaryWriter

from coordrl.backbone import Coords
from coordrl.config import Override, refuse_overruled
from coordrl.detection import figures, table
from coordrl.detection.rpn import AnchorLayout
from coordrl.detection.sources import DigitSplit
from coordrl.detection.training import (
    DetectorSettings,
    DivergedError,
    Evaluation,
    Run,
    RunResult,
    Stage,
    find,
    load_detector_settings,
    read_table,
)
from coordrl.experiments import ManyRuns, each_once, read_curve, swept_values, train_once, watched
from coordrl.files import RunError, atomic_file, make_folder, reason
from coordrl.records import null_as_nan, provenance, read_json, write_figure, write_json, write_text
from coordrl.runs import RunFolder

PICTURE_FILE = "detections.png"
_DRAWN = 6  # scenes in a picture
_TABLE = "detection"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiments(ManyRuns):
    """Trains runs into subfolders of one folder, and makes tables and figures of them.

    Raises:
        RunError: In all methods, if a folder holds other settings, a file cannot be written, or a
            run diverges.
        SettingsError: In all methods, if a setting does not fit.
    """

    digits: DigitSplit
    """Digits that the pictures are made of."""

    def train_seeds(
        self,
        stage: Stage,
        coords: Coords,
        layout: AnchorLayout | None,
        *,
        seeds: int,
        report: Path,
    ) -> str:
        """Train with each seed; return the table's row, and write it and its figures.

        Writes ``detection-<stage>-<anchors>-<coords>.md`` and ``.json``, separate from the table's
        own files.
        """
        self.require_seeds(seeds)
        make_folder(report)
        results = [self.train(self._settings(stage, coords, layout, seed)) for seed in range(seeds)]
        name = f"{_TABLE}-{_kind(results[0].settings)}"
        self._draw(results, report, name)
        return self._write_table(results, report, name, planned=seeds)

    def make_table(self, size: table.TableSize, report: Path) -> str:
        """Train everything that the table needs; write ``detection.md``, ``.json`` and figures.

        All arms are trained with one seed before the next, so that an unfinished table still
        compares arms. Runs that diverge are listed under it and are in no row.

        Args:
            size: ``"quick"``: one seed, cut short, in a separate folder. ``"full"``: the recipes
                of the configuration, and each arm with its other step sizes and the first seed.
            report: Folder to write to.

        Raises:
            SettingsError: Also if a setting that the full table varies is among the overrides.
        """
        if size == "full":
            varied = {item.key: "the table varies it" for item in self._sweep()}
            refuse_overruled(self.overrides, varied)
        make_folder(report)
        own = self if size == "full" else dataclasses.replace(self, out=self.out / "quick")
        plan, results, diverged = own._plan(size), [], []
        for settings in plan:
            try:
                results.append(own.train(settings))
            except DivergedError as error:
                diverged.append(f"{own._folder(settings).name} ({error})")
                continue
            own._write_table(results, report, _TABLE, planned=len(plan), diverged=diverged)
        if not results:
            raise RunError(f"all runs diverged: {'; '.join(diverged)}")
        own._draw(results, report, _TABLE)
        return own._write_table(results, report, _TABLE, planned=len(plan), diverged=diverged)

    def train(self, settings: DetectorSettings) -> RunResult:
        """Train one run, continue it, or read its result.

        Raises:
            Interrupted: If a signal asked to stop; the run can be resumed.
        """
        return train_once(
            self._folder(settings),
            settings,
            read=lambda file: _read_result(file, settings),
            train=lambda folder: self._train(settings, folder),
        )

    def _train(self, settings: DetectorSettings, folder: RunFolder) -> RunResult:
        run = Run(settings, self.digits, device=self.device, folder=folder)
        with watched(folder, run.total_steps, "steps", done=run.step) as watch:

            def report(run: Run) -> None:
                last = run.curve[-1] if run.curve else None
                note = "" if last is None else f"test IOU {last.test['best_iou']:.3f}"
                curve = [point.test["best_iou"] for point in run.curve]
                watch.progress.update(run.step, note, curve)
                if last is not None and last.step == run.step:
                    _log(watch.tensorboard, last)
                    watch.tensorboard.add_image("test", _picture(run), run.step, dataformats="HWC")

            result = run.train(stop=watch.stop, on_step=report)
        figures.save_picture(_picture(run), folder.path / PICTURE_FILE)
        return result

    def _settings(
        self,
        stage: Stage,
        coords: Coords,
        layout: AnchorLayout | None,
        seed: int,
        more: Sequence[Override] = (),
    ) -> DetectorSettings:
        chosen = {"coords": coords, "seed": seed, "digits": self.digits.fingerprint}
        if layout is not None:
            chosen["proposals.anchor_layout"] = layout
        fixed = [Override(key, value, "the command line") for key, value in chosen.items()]
        return load_detector_settings(self.config, stage, (*more, *self.overrides, *fixed))

    def _plan(self, size: table.TableSize) -> list[DetectorSettings]:
        arms: list[Coords] = ["none", "all"]
        layouts: tuple[AnchorLayout, ...] = get_args(AnchorLayout)
        short = [Override("training.epochs", 2, "the quick table")] if size == "quick" else []
        plan = [
            *(
                self._settings("rpn", coords, layout, seed, short)
                for seed in range(1 if size == "quick" else 5)
                for layout in layouts
                for coords in arms
            ),
            *(self._settings("full", coords, None, 0, short) for coords in arms),
            *(
                self._settings("rpn", coords, layout, 0, [*short, point])
                for point in ([] if size == "quick" else self._sweep())
                for layout in layouts
                for coords in arms
            ),
        ]
        # The sweep may contain the recipe's own value.
        return [settings for i, settings in enumerate(plan) if settings not in plan[:i]]

    def _sweep(self) -> list[Override]:
        sweep = read_table(self.config, "rpn").get("sweep", {})
        return list(itertools.chain(*swept_values(sweep, f"{self.config}, [rpn.sweep]")))

    def _swept_keys(self) -> list[str]:
        return list(dict.fromkeys(item.key for item in self._sweep()))

    def _folder(self, settings: DetectorSettings) -> Path:
        return self.out / f"{_kind(settings)}{self._swept(settings)}-s{settings.seed}"

    def _swept(self, settings: DetectorSettings) -> str:
        """Return the part of a run's name for its swept value; empty for the recipe's own."""
        recipe = load_detector_settings(self.config, settings.stage, self.overrides)
        parts = []
        for key in self._swept_keys():
            value = operator.attrgetter(key)(settings)
            if value != operator.attrgetter(key)(recipe):
                name = key.rpartition(".")[2]
                is_rate = name == "learning_rate"
                parts.append(f"-lr{value:g}" if is_rate else f"-{name}={value}")
        return "".join(parts)

    def _write_table(
        self,
        results: Sequence[RunResult],
        report: Path,
        name: str,
        *,
        planned: int,
        diverged: Sequence[str] = (),
    ) -> str:
        """Write ``<name>.md`` and ``.json`` of the finished runs; return the table."""
        last = results[-1]
        # The step size has a column of its own.
        swept = [key for key in self._swept_keys() if key != "training.learning_rate"]
        text = table.to_markdown(results, swept)
        if diverged:
            text += f"\nDiverged, and in no row: {'; '.join(diverged)}.\n"
        places = each_once(own.made_on for own in results)
        head = (
            "# Scattered MNIST\n\n"
            f"{len(results)} of the {planned} runs of `{self.command}` on {places},"
            f" {last.device}, {last.threads} thread(s); {last.source}. The"
            " mean over seeds and its"
            " 95 % interval (Student's t); seeds change weights, order and sampling, not the"
            " pictures. Both arms are trained alike.\n\n"
            "Test IOU of proposals is the paper's: the overlap of each proposal with the digit that"
            " it overlaps most. IOU of pairs is that of the boxes that are, or would be, learned"
            " from. Recall is the share of digits, at least half visible, that some proposal"
            " overlaps by 0.5.\n\n"
        )
        link = f"\n![Test IOU of proposals while learning]({name}-curves.png)\n"
        write_text(head + text + (link if self._drawn(results) else ""), report / f"{name}.md")
        record = {**provenance(self.command), **table.to_json(results, swept)}
        write_json({**record, "diverged": list(diverged)}, report / f"{name}.json")
        return text

    def _draw(self, results: Sequence[RunResult], report: Path, name: str) -> None:
        """Write the learning curves, and the picture of each kind of run with seed 0.

        Runs with step sizes other than the recipe's are left out.
        """
        proposals = self._drawn(results)
        layouts = dict.fromkeys(own.settings.proposals.anchor_layout for own in proposals)
        if proposals:
            curves = figures.learning_curves(proposals, list(layouts))
            write_figure(curves, report / f"{name}-curves.png", dpi=80)
        for result in results:
            settings = result.settings
            if settings.seed == 0 and not self._swept(settings):
                path = self._folder(settings)
                try:
                    picture = (path / PICTURE_FILE).read_bytes()
                except OSError as error:
                    raise RunError(
                        f"{path / PICTURE_FILE} cannot be read ({reason(error)}); delete {path},"
                        " and the same command trains that run again"
                    ) from error
                with atomic_file(report / f"{_TABLE}-{path.name}.png") as file:
                    file.write(picture)

    def _drawn(self, results: Sequence[RunResult]) -> list[RunResult]:
        """Return the runs whose learning curves are drawn."""
        return [
            result
            for result in results
            if result.settings.stage == "rpn" and not self._swept(result.settings)
        ]


def _kind(settings: DetectorSettings) -> str:
    return f"{settings.stage}-{settings.proposals.anchor_layout}-{settings.coords}"


def _picture(run: Run) -> figures.Picture:
    scenes = run.test_scenes[:_DRAWN]
    margin = 12 if run.settings.scatter.min_visible is None else 0
    return figures.draw_scenes(scenes, *find(run.detector, scenes), margin=margin)


def _log(tensorboard: SummaryWriter, point: Evaluation) -> None:
    tensorboard.add_scalar("train/loss", point.loss, point.step)
    tensorboard.add_scalar("train/iou", point.train_iou, point.step)
    for name, value in point.test.items():
        tensorboard.add_scalar(f"test/{name}", value, point.step)


def _read_result(path: Path, settings: DetectorSettings) -> RunResult:
    def build(record: dict[str, Any]) -> RunResult:
        points = null_as_nan(record["curve"])
        curve = read_curve(points, lambda point: Evaluation(**point))
        return RunResult(**{**record, "curve": curve, "settings": settings})

    return read_json(path, build)
