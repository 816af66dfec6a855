"""Many runs: over seeds, both arms, and all of them for the table and its figures.

Each run has a folder that belongs to its settings: finished runs are read, stopped runs continue.
"""

import dataclasses
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from coordrl.config import SettingsError, refuse_overruled
from coordrl.experiments import (
    ManyRuns,
    each_once,
    may_go_on,
    read_curve,
    require_trained,
    run_folder,
    train_once,
    watched,
    with_time_of,
)
from coordrl.files import make_folder
from coordrl.generative import figures, table
from coordrl.generative.interpolation import Motion
from coordrl.generative.objectives import ObjectiveName
from coordrl.generative.settings import (
    Arm,
    GenerativeSettings,
    Model,
    Scale,
    folder_meant,
    load_generative_settings,
)
from coordrl.generative.training import (
    Evaluation,
    Run,
    RunResult,
    advice,
    evaluation_from_json,
)
from coordrl.records import null_as_nan, provenance, read_json, write_figure, write_json, write_text
from coordrl.runs import RunFolder

SAMPLES_FOLDER = "samples"
_TABLE = "generative"
_MEANINGS = {"data": folder_meant}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiments(ManyRuns):
    """Trains runs into subfolders of one folder, and makes tables and figures of them.

    Raises:
        RunError: In all methods, if a folder holds other settings or a file cannot be written.
        SettingsError: In all methods, if a setting does not fit.
        DataError: In all methods, if there are no pictures.
    """

    def train_seeds(
        self,
        model: Model,
        arms: Sequence[Arm],
        objective: ObjectiveName,
        scale: Scale,
        *,
        seeds: int,
        report: Path,
    ) -> str:
        """Train each arm with each seed; return the table, and write it and its figures.

        Writes ``generative-<model>-<objective>-<size>.md`` and ``.json``, separate from the tables'
        own files. The name also has the arm, if there is only one, and the pictures, if they are
        not Sort-of-Clevr.
        """
        self.require_seeds(seeds)
        chosen = [
            load_generative_settings(self.config, scale, model, coords, objective, self.overrides)
            for coords in arms
        ]
        make_folder(report)
        results = [
            self.train(dataclasses.replace(settings, seed=seed))
            for settings in chosen
            for seed in range(seeds)
        ]
        text = table.to_markdown(results)
        name = _name(table.Kind.of(chosen[0]), arms)
        self._write_table(f"{_TABLE}-{name}", text, results, report)
        self._draw(results, report)
        return text

    def make_table(self, size: table.TableSize, report: Path) -> str:
        """Train everything that the table needs; write ``generative.md``, ``.json`` and figures.

        All models and both arms are trained with one seed before the next, so that a table that was
        stopped is complete for its first seeds.
        """
        results: list[RunResult] = []
        cells, seeds = table.plan(size)
        chosen = [  # before training, since settings may not fit
            load_generative_settings(
                self.config, cell.scale, cell.model, coords, cell.objective, self.overrides
            )
            for cell, coords in itertools.product(cells, table.ARMS)
        ]
        make_folder(report)
        for seed, settings in itertools.product(range(seeds), chosen):
            results.append(self.train(dataclasses.replace(settings, seed=seed)))
            self._write_table(_TABLE, table.to_markdown(results), results, report)
        self._draw(results, report)
        return table.to_markdown(results)

    def make_step_table(self, report: Path) -> str:
        """Train the paper's GAN of 32x32 pixels, in both arms, with each pair of step sizes.

        Then train each arm's best pair with more seeds. Each pair has a folder of its own. Writes
        ``generative-steps.md`` and ``.json``.

        Raises:
            SettingsError: Also if step sizes are among the overrides, or the pictures are not
                Sort-of-Clevr, whose entropies decide which step sizes are best.
        """
        steps_of_table = ("gan.generator_lr", "gan.discriminator_lr")
        refuse_overruled(self.overrides, dict.fromkeys(steps_of_table, "the table varies it"))
        make_folder(report)
        results: list[RunResult] = []

        def train(coords: Arm, steps: table.Steps, seed: int) -> None:
            settings = load_generative_settings(
                self.config, "small", "gan", coords, "paper", self.overrides
            )
            if settings.data != "clevr":
                raise SettingsError(
                    "the table of step sizes measures where the objects of Sort-of-Clevr are: give"
                    f" data=clevr, or none, got {settings.data!r}"
                )
            generator, discriminator = steps
            gan = dataclasses.replace(
                settings.gan, generator_lr=generator, discriminator_lr=discriminator
            )
            folder = self.out / f"steps-{generator:g}-{discriminator:g}"
            own = dataclasses.replace(self, out=folder)
            results.append(own.train(dataclasses.replace(settings, gan=gan, seed=seed)))
            self._write_table(f"{_TABLE}-steps", table.steps_to_markdown(results), results, report)

        for steps, coords in itertools.product(table.STEP_SIZES, table.ARMS):
            train(coords, steps, seed=0)
        for coords in table.ARMS:
            best = table.best_steps(run for run in results if run.settings.coords == coords)
            for seed in range(1, table.SEEDS_OF_THE_BEST):
                train(coords, best, seed)
        return table.steps_to_markdown(results)

    def train(self, settings: GenerativeSettings) -> RunResult:
        """Train one run, continue it, or read its result.

        Raises:
            Interrupted: If a signal asked to stop; the run can be resumed.
        """
        limit = settings.training.max_seconds
        return train_once(
            self._folder(settings),
            settings,
            read=lambda file: _read_result(file, settings),
            train=lambda folder: self._train(settings, folder),
            goes_on=lambda result: may_go_on(result.ended, result.curve[-1].cpu_seconds, limit),
            meanings=_MEANINGS,
        )

    def _train(self, settings: GenerativeSettings, folder: RunFolder) -> RunResult:
        path = folder.path
        run = Run(settings, device=self.device, folder=folder)
        (path / SAMPLES_FOLDER).mkdir(exist_ok=True)
        with watched(folder, settings.training.iterations, "batches", done=run.step) as watch:
            if run.pictures_changed:
                watch.progress.say(
                    f"{path.name}: pictures in {settings.data} have other names or sizes than when"
                    " this run was stopped; it goes on with those that are there now"
                )

            def report(run: Run) -> None:
                last = run.curve[-1] if run.curve else None
                watch.progress.update(run.step, "" if last is None else _note(last))
                if last is not None and last.step == run.step:
                    _log(watch.tensorboard, last)
                    sheet = figures.grid(run.samples(100))
                    shown = figures.to_bytes(sheet).numpy()
                    watch.tensorboard.add_image("samples", shown, run.step, dataformats="HWC")
                    name = path / SAMPLES_FOLDER / f"{run.step:08d}.png"
                    figures.save_picture(sheet, name, enlarge=2)

            result = run.train(stop=watch.stop, on_step=report)
            if result.ended == "diverged":
                watch.progress.say(
                    f"{path.name}: a loss was no longer finite; the weights of batch {run.step}"
                    f" are kept. To go further, {advice(settings)}, in another folder"
                )
        figures.save_film(_film(run), path / "interpolation.gif", enlarge=2)
        return result

    def _folder(self, settings: GenerativeSettings) -> Path:
        name = _name(table.Kind.of(settings), [settings.coords])
        return self.out / f"{name}-s{settings.seed}"

    def _write_table(
        self, name: str, text: str, results: Sequence[RunResult], report: Path
    ) -> None:
        last = results[-1]
        places = each_once(own.made_on for own in results)
        head = (
            "# Generative models\n\n"
            f"Made by `{self.command}` on {places},"
            f" {last.threads} thread(s), {self.device}. Mean over seeds, and the range behind it."
            f" CPU seconds are of training alone. {_measured(last.settings)}\n\n"
        )
        write_text(head + text, report / f"{name}.md")
        runs = [result.to_json() for result in results]
        write_json({**provenance(self.command), "runs": runs}, report / f"{name}.json")

    def _draw(self, results: Sequence[RunResult], report: Path) -> None:
        """Draw both arms of the first seed beside the data, and the curves of all seeds."""
        kinds = table.by_kind(results)
        for section in dict.fromkeys(kind._replace(coords="all") for kind in kinds):
            arms = {
                coords: own
                for coords in table.ARMS
                if (own := kinds.get(section._replace(coords=coords))) is not None
            }
            if section.data == "clevr":
                self._draw_arms(arms, report / f"{_TABLE}-{_name(section, list(arms))}")

    def _draw_arms(self, arms: dict[Arm, list[RunResult]], path: Path) -> None:
        runs = {coords: self._trained(own[0].settings) for coords, own in arms.items()}
        first = next(iter(runs.values()))
        pictures: dict[str, Tensor] = {"data": first.real_pictures()}
        words = {"none": "without coordinates", "all": "with coordinates"}
        pictures |= {words[coords]: run.samples() for coords, run in runs.items()}
        canvas = first.settings.canvas
        write_figure(figures.comparison(pictures, canvas), path.with_suffix(".png"))
        if first.settings.model == "gan":
            curves = figures.entropy_curves([result for own in arms.values() for result in own])
            write_figure(curves, path.with_name(f"{path.name}-curves.png"))
        films = torch.cat([_film(run) for run in runs.values()], dim=2)  # one above the other
        figures.save_film(films, path.with_suffix(".gif"), enlarge=2)

    def _trained(self, settings: GenerativeSettings) -> Run:
        with run_folder(self._folder(settings), settings, _MEANINGS) as folder:
            run = Run(settings, device=self.device, folder=folder)
        require_trained(run.step, folder)
        return run


def _name(kind: table.Kind, arms: Sequence[Arm]) -> str:
    """Return the file name for one kind of run, with the arm if there is only one."""
    arm = arms[0] if len(arms) == 1 else ""
    data = "" if kind.data == "clevr" else Path(os.path.abspath(kind.data)).name  # of "." as well
    parts = (kind.model, kind.objective, arm, str(kind.size), data)
    return "-".join(part for part in parts if part)


def _measured(settings: GenerativeSettings) -> str:
    """Say how many pictures the measures of a table are of."""
    samples = f"{settings.training.samples:,}"
    if settings.data == "clevr":
        return (
            f"Measures are of {samples} generated pictures; those of data are of as many real ones,"
            " against others. From cells on they are of the valid pictures, and depend on how many"
            " these are."
        )
    return (
        f"Distances are of {samples} generated pictures from as many real ones; those of data are"
        " of as many real ones from others. Where there are too few real ones, they are of all of"
        " them, and those of data of one half from the other, which makes them larger."
    )


def _film(run: Run) -> Tensor:
    """Return frames of eight interpolations beside each other, ``(T, 3, H, W)``."""
    frames = run.ways(8, 25).unbind(dim=1)
    return torch.stack([figures.grid(frame, columns=8) for frame in frames])


def _note(last: Evaluation) -> str:
    losses = ", ".join(f"{name} {loss:.2f}" for name, loss in last.losses.items())
    if last.entropies is None or last.row is None:
        return losses
    entropies = " ".join(f"{getattr(last.entropies, name):.2f}" for name in table.ENTROPIES)
    return f"{losses}; entropies {entropies}, valid {last.row.valid[2]:.0%}"


def _log(tensorboard: SummaryWriter, point: Evaluation) -> None:
    for name, loss in point.losses.items():
        tensorboard.add_scalar(f"loss/{name}", loss, point.step)
    for part in (point.entropies, point.row):
        if part is None:
            continue
        for name, value in dataclasses.asdict(part).items():
            if isinstance(value, float | int):
                tensorboard.add_scalar(f"{type(part).__name__.lower()}/{name}", value, point.step)
    for band, distance in enumerate(point.patches):
        tensorboard.add_scalar(f"patches/{band}", distance, point.step)


def _read_result(path: Path, settings: GenerativeSettings) -> RunResult:
    def build(record: dict[str, Any]) -> RunResult:
        motion = record["motion"]
        changed = {
            "settings": with_time_of(settings, record["settings"]),
            "curve": read_curve(record["curve"], evaluation_from_json),
            "real": evaluation_from_json(record["real"]),
            "motion": None if motion is None else Motion(**null_as_nan(motion)),
        }
        return RunResult(**{**record, **changed})

    return read_json(path, build)
