"""One training run from its first step, or its last checkpoint, to the saved agent."""

import contextlib
import csv
import dataclasses
import io
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from coordrl.agents import AgentError, Episode, EvaluationResult, describe, evaluate, save_agent
from coordrl.agents.saving import read_card, recover_agent, require_place
from coordrl.algorithms import EntropySchedule, make_model
from coordrl.config import Schedule, SettingsError, TrainingSettings, dump_settings
from coordrl.device_algorithms import make_device_model
from coordrl.devices import use_device
from coordrl.emulator.nvrtc import CudaError
from coordrl.files import RunError
from coordrl.memory import lacking_memory
from coordrl.progress import Progress
from coordrl.ranks import Ranks, join, leave
from coordrl.records import write_text
from coordrl.runs import RunFolder, open_run
from coordrl.sb3_envs import VectorEnvAdapter, make_sb3_env
from coordrl.stopping import StopNow, StopRequest
from coordrl.training.checkpoint import Restored, read_checkpoints, write_checkpoints
from coordrl.training.profiling import OTHER, Profile
from coordrl.training.settings import DEFAULTS, MAY_DIFFER_ON_RESUME, describe_acceleration
from coordrl.training.tracking import make_logger, require_tracker

Ending = Literal["finished", "target reached", "stopped"]


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended, or was interrupted.

    Attributes:
        ending: ``"finished"`` if all steps were taken, ``"target reached"`` if an evaluation
            reached the target, ``"stopped"`` if a signal came.
        agent: Folder of the last agent.
        best_agent: Folder of the agent of the best evaluation, if there was one.
        steps: Agent steps since the beginning of the run.
        evaluation: The last evaluation, if there was one.
        signal_number: The signal that interrupted the run, or None.
        profile: Table of the time spent, if asked for.
    """

    ending: Ending
    agent: Path
    best_agent: Path | None
    steps: int
    evaluation: EvaluationResult | None
    signal_number: int | None
    profile: str | None


def train(
    settings: TrainingSettings,
    folder: Path | str,
    *,
    resume: bool = False,
    profile: bool = False,
    threads: int | None = None,
) -> TrainingResult:
    """Train an agent, showing its progress, and save it.

    The run folder holds ``settings.toml``, the newest checkpoints, the learning curve
    (``progress.csv``), ``evaluations.json``, the tracker's files, and two saved agents: ``best``,
    of the best evaluation, and ``last``.

    The first Ctrl-C, SIGTERM or SIGHUP ends the run after the current update, with a checkpoint; a
    Ctrl-C after it aborts the run. A resumed run restores everything: weights, optimizer,
    schedules, random streams, replay buffer, games, statistics, best score, curves. On the CPU and
    with our emulator, its final weights equal those of an uninterrupted run bit for bit.

    With ``run.on_device`` the processes started by ``torchrun`` train one agent together: they
    divide games and minibatches among them, and the first process writes and evaluates.

    On Linux the process keeps freed memory from here on; see
    :func:`~coordrl.memory.keep_freed_memory`.

    Args:
        settings: Settings of the run.
        folder: Run folder, missing or empty unless ``resume``.
        resume: Continue from the newest whole checkpoint in ``folder``, whose settings have to be
            equal except for :data:`MAY_DIFFER_ON_RESUME`. With more ``run.total_steps``, a finished
            run is trained further.
        profile: Measure where the time goes.
        threads: Threads of the network and of games on the CPU; all cores if None. Another number
            changes the order of sums, and so their rounding.

    Raises:
        SettingsError: If the settings do not fit the machine or each other, or ``threads`` is
            below 1.
        RunError: If the folder does not fit, or cannot be written to.
        AgentError: If an agent cannot be written.

    Example:
        >>> import tempfile
        >>> from coordrl.config import RunSettings
        >>> run = RunSettings("Breakout", device="cpu", total_steps=64, evaluation_episodes=1)
        >>> settings = TrainingSettings(run=run, algorithm={"n_steps": 8})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = train(settings, Path(folder, "run"))
        >>> result.ending, result.steps, result.agent.name
        ('finished', 64, 'last')
    """
    device = use_device(settings.run.device, threads)
    require_tracker(settings.run.track, Path(folder))
    with (
        _ranks(settings, device) as ranks,
        closing(_environments(settings, device, ranks, threads)) as env,
    ):
        # Before the folder is made, so that invalid settings leave nothing behind.
        model = _seeded_model(settings, env, device, ranks)
        with ExitStack() as stack:
            opened = open_run(
                Path(folder),
                dump_settings(settings),
                resume=resume,
                may_differ=MAY_DIFFER_ON_RESUME,
                defaults=dump_settings(DEFAULTS),
            )
            run_folder = ranks.first(lambda: stack.enter_context(opened))
            stop = stack.enter_context(StopRequest())
            if ranks.index > 0:
                return _Follower(settings, run_folder, env, model, stop, ranks).go(resume=resume)
            leader = _Leader(settings, run_folder, env, model, stop, ranks, profile=profile)
            return leader.go(resume=resume)


_STREAMS = ("environment", "policy", "data", "evaluation")


def _stream(settings: TrainingSettings, name: str, index: int = 0) -> int:
    """Return the seed of one of the run's random streams, or of its ``index``-th part."""
    key = (_STREAMS.index(name), index)
    return int(np.random.SeedSequence(settings.run.seed, spawn_key=key).generate_state(1)[0])


@contextmanager
def _ranks(settings: TrainingSettings, device: str) -> Iterator[Ranks]:
    """Join the processes that train together."""
    ranks = join(device)
    try:
        if ranks.count > 1 and not settings.run.on_device:
            raise SettingsError(
                f"{ranks.count} processes train together only with run.on_device = true"
            )
        yield ranks
    finally:
        leave()


@contextmanager
def _naming_memory() -> Iterator[None]:
    """Turn out-of-memory errors into ones that name the settings to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        reason = lacking_memory(error)
        if reason is None:
            raise
        raise SettingsError(
            "there is not enough memory; lower run.num_envs, algorithm.n_steps, "
            "algorithm.batch_size or algorithm.buffer_size, in another folder if the run had begun "
            f"({reason})"
        ) from error


def _environments(
    settings: TrainingSettings, device: str, ranks: Ranks, threads: int | None
) -> VectorEnvAdapter:
    if settings.env.observation != "gray":
        raise SettingsError(
            f"env.observation = {settings.env.observation!r}: agents are trained on stacked gray "
            "screens, choose 'gray'"
        )
    run = settings.run
    on_gpu = run.on_device and device != "cpu"
    where: dict[str, Any] = {"device": device} if on_gpu else {"num_threads": threads or 0}
    try:
        num_envs = ranks.share(run.num_envs, "run.num_envs")
        with _naming_memory():
            return make_sb3_env(run.game, num_envs, settings.env, stagger=run.stagger, **where)
    except (ValueError, CudaError) as error:
        raise SettingsError(f"{run.game} cannot be played so: {error}") from error


def _seeded_model(
    settings: TrainingSettings, env: VectorEnvAdapter, device: str, ranks: Ranks
) -> BaseAlgorithm:
    """Build the model, with separate random streams for policy, data and environments."""
    seed = _stream(settings, "policy")
    try:
        with _naming_memory():
            if settings.run.on_device:
                model = make_device_model(settings, env, seed=seed, device=device, ranks=ranks)
            else:
                model = make_model(settings, env, seed=seed, device=device)
    except (ValueError, AssertionError) as error:
        raise SettingsError(f"{settings.run.algo} refuses its settings: {error}") from error
    # Ranks begin with equal weights; each has its own random streams and games.
    if ranks.index > 0:
        torch.manual_seed(_stream(settings, "policy", ranks.index))
    # Buffers and DQN's exploration draw from NumPy's global stream, everything else from torch's.
    np.random.seed(_stream(settings, "data", ranks.index))  # noqa: NPY002
    _seed_games(env, _stream(settings, "environment"), ranks)
    return model


def _seed_games(env: VectorEnvAdapter, seed: int, ranks: Ranks) -> None:
    """Give each rank's games the seeds that they would have in a single process."""
    env.seed(seed + ranks.index * env.num_envs)


@dataclass
class _Journal:
    """Records of a run, kept in its checkpoints."""

    seconds: float = 0.0
    """Duration of the run so far."""
    logged_at: int = 0
    evaluated_at: int = 0
    saved_at: int = 0
    total_steps: int | None = None
    """Length that the run was set to; None in journals of earlier versions."""
    best: float | None = None
    """Mean return of the best evaluation."""
    curve: list[tuple[int, float, float, float]] = dataclasses.field(default_factory=list)
    """Agent steps, seconds, and mean return and length of the last 100 episodes."""
    evaluations: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """Results, each with its agent steps."""


class _Stop(Exception):
    """Ends SB3's ``learn`` between an update and the next rollout, which callbacks cannot do."""

    def __init__(self, ending: Ending) -> None:
        super().__init__()
        self.ending = ending


class _Hooks(BaseCallback):
    """Callback through which SB3 calls the learner."""

    def __init__(self, learner: "_Learner") -> None:
        super().__init__()
        self._learner = learner

    def _on_rollout_start(self) -> None:
        self._learner.between_updates()

    def _on_step(self) -> bool:
        self._learner.show()
        return True


class _Learner:
    """The part of a run that every rank does: learn, and stop between updates when due."""

    def __init__(
        self,
        settings: TrainingSettings,
        folder: RunFolder,
        env: VectorEnvAdapter,
        model: BaseAlgorithm,
        stop: StopRequest,
        ranks: Ranks,
    ) -> None:
        self._settings, self._run = settings, settings.run
        self._folder, self._env, self._model = folder, env, model
        self._stop, self._ranks = stop, ranks
        self._signal_number: int | None = None  # that came to any rank

    @property
    def _steps(self) -> int:
        return self._model.num_timesteps

    def show(self) -> None:
        """Show the run's progress."""

    def between_updates(self, *, at_end: bool = False) -> None:
        """Do what is due, and raise :class:`_Stop` if the run ends here."""
        raise NotImplementedError

    @_naming_memory()
    def _learn(self) -> Ending:
        remaining = self._run.total_steps - self._steps
        callbacks: list[BaseCallback] = [_Hooks(self)]
        entropy = self._settings.algorithm.get("ent_coef")
        if isinstance(entropy, Schedule):
            callbacks.append(EntropySchedule(entropy))
        try:
            if remaining > 0:
                # SB3 adds the steps done so far, so the total, and with it the schedules, are
                # those of the whole run.
                self._model.learn(
                    remaining,
                    callback=callbacks,
                    log_interval=None,  # type: ignore[arg-type]  # SB3 accepts None
                    reset_num_timesteps=False,
                )
            self.between_updates(at_end=True)
        except _Stop as stop:
            return stop.ending
        except (ValueError, RuntimeError):  # the latter if anything in the process was compiled
            self._require_finite()  # clearer than torch's error, if that was the reason
            raise
        return "finished"

    def _require_finite(self) -> None:
        """Raise a RunError if a weight is not finite, before the network is used or saved."""
        policy = self._model.policy
        finite = [parameter.isfinite().all() for parameter in policy.parameters()]
        if bool(torch.stack(finite).all()):
            return
        checkpoint = self._folder.newest_checkpoint()
        kept = (
            "there is no checkpoint"
            if checkpoint is None
            else f"the checkpoint of step {checkpoint.step:,} is kept"
        )
        raise RunError(
            f"at step {self._steps:,} weights are no longer finite; {kept}. Start anew in"
            " another folder with a smaller algorithm.learning_rate"
        )

    def _restore(self, checkpoint: Path) -> Restored:
        restored = read_checkpoints(self._model, checkpoint, self._ranks)
        if restored.new_games is not None:
            seed = _stream(self._settings, "environment", self._steps)
            _seed_games(self._env, seed, self._ranks)
        return restored

    def _any_requested(self) -> bool:
        """Tell whether any rank was asked to stop; a collective."""
        came = [number for number in self._ranks.gather(self._stop.signal_number) if number]
        self._signal_number = came[0] if came else None
        return bool(came)


class _Follower(_Learner):
    """The ranks after the first: they learn, and between updates do what the first decides."""

    def go(self, *, resume: bool) -> TrainingResult:
        """Train until the first rank ends it."""
        checkpoint = self._ranks.first(self._folder.newest_checkpoint) if resume else None
        if checkpoint is not None:
            self._restore(checkpoint.path)
        self._model.set_logger(Logger(None, []))
        ending = self._learn()
        signal_number = self._signal_number if ending == "stopped" else None
        agent = self._folder.path / "last"
        return TrainingResult(ending, agent, None, self._steps, None, signal_number, None)

    def between_updates(self, *, at_end: bool = False) -> None:
        """Follow the first rank's decision."""
        self._any_requested()
        ending, saves = self._ranks.first(lambda: (None, False))
        if saves:
            write_checkpoints(self._model, "", self._folder.path, self._ranks)
        if ending:
            raise _Stop(ending)


class _Leader(_Learner):
    """The first rank: between updates it logs, evaluates, writes checkpoints and ends the run.

    None of this draws from the training's random streams.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        folder: RunFolder,
        env: VectorEnvAdapter,
        model: BaseAlgorithm,
        stop: StopRequest,
        ranks: Ranks,
        *,
        profile: bool,
    ) -> None:
        super().__init__(settings, folder, env, model, stop, ranks)
        self._profile = Profile() if profile else None
        self._journal = _Journal()
        self._note = ""
        self._returns: list[float] = []
        label = f"{self._run.game} {self._run.algo}"
        self._progress = Progress(label, self._run.total_steps, "steps")

    def go(self, *, resume: bool) -> TrainingResult:
        """Train until the end, or until something ends it."""
        for name in ("best", "last"):
            recover_agent(self._folder.path / name)
            require_place(self._folder.path / name)
        if resume:
            self._go_back_to_checkpoint()
        self._began_at, self._seconds_before = time.monotonic(), self._journal.seconds
        first_step = self._steps
        logger = make_logger(
            self._run.track, self._folder.path, dataclasses.asdict(self._settings), first_step
        )
        self._model.set_logger(logger)
        if self._profile is not None:
            self._profile.watch_model(self._model)
        try:
            with self._progress, self._phase(OTHER):
                self._progress.say(describe(self._model))
                if self._run.on_device:
                    device = self._model.device.type
                    self._progress.say(describe_acceleration(self._settings, self._ranks, device))
                if self._run.stagger > 0 and first_step == 0:
                    self._progress.say(f"playing the games up to {self._run.stagger} steps apart")
                ending = self._learn()
                agent = self._folder.path / "last"
                self._save(agent, is_evaluated=self._journal.evaluated_at == self._steps)
        finally:
            logger.close()
        best = self._folder.path / "best"
        return TrainingResult(
            ending=ending,
            agent=agent,
            best_agent=best if self._journal.best is not None else None,
            steps=self._steps,
            evaluation=self._last_evaluation(),
            signal_number=self._signal_number if ending == "stopped" else None,
            profile=self._profile.table(self._steps - first_step) if self._profile else None,
        )

    def _go_back_to_checkpoint(self) -> None:
        checkpoint = self._ranks.first(self._folder.newest_checkpoint)
        if checkpoint is None:
            self._progress.say("no checkpoint was written yet; starting from the beginning")
            self._find_best()
            return
        for sentence in checkpoint.skipped:
            self._progress.say(sentence)
        restored = self._restore(checkpoint.path)
        try:
            self._journal = _Journal(**json.loads(restored.journal))
        except (TypeError, ValueError) as error:
            raise RunError(
                f"{checkpoint.path} has a journal of another version of coordrl ({error}); resume "
                "with the version that started the run"
            ) from error
        self._find_best()
        self._progress.go_on_from(self._steps)
        before, now = self._journal.total_steps, self._run.total_steps
        if before not in (None, now):
            self._progress.say(f"the run now has {now:,} steps instead of {before:,}")
        how = ""
        if restored.new_games is not None:
            how = f", with new games: {restored.new_games}"
        self._progress.say(f"going on from the checkpoint of step {self._steps:,}{how}")

    def _find_best(self) -> None:
        """Set the best score to that of the ``best`` agent in the folder.

        Before it was killed, the run may have gone on to a better agent after the checkpoint, or
        lost the agent that it was about to replace.
        """
        self._journal.best = None
        with contextlib.suppress(AgentError):
            evaluations = read_card(self._folder.path / "best").evaluations
            self._journal.best = max((result.mean for result in evaluations), default=None)

    def show(self) -> None:
        """Show the run's progress."""
        self._progress.update(self._steps, self._note, self._returns)

    def between_updates(self, *, at_end: bool = False) -> None:
        """Do what is due, and raise :class:`_Stop` if the run ends here."""
        journal, run = self._journal, self._run
        is_due = self._is_due(run.evaluation_interval, journal.evaluated_at, at_end)
        if is_due:
            self._evaluate()
        evaluated_now = journal.evaluated_at == self._steps > 0
        logs = evaluated_now or self._is_due(run.log_interval, journal.logged_at, at_end)
        # A resumed run first repeats an interrupted evaluation, and logs at this step then.
        if logs and not (is_due and not evaluated_now):
            self._log()
        stop_requested = self._any_requested()
        ending: Ending | None = None
        last = self._last_evaluation() if evaluated_now else None
        if last is not None and run.target_return is not None and last.mean >= run.target_return:
            ending = "target reached"
        elif stop_requested:
            ending = "stopped"
        is_saved = journal.saved_at == self._steps
        saves = ending is not None or self._is_due(
            run.checkpoint_interval, journal.saved_at, at_end
        )
        # A resumed run's own checkpoint lacks the evaluation that it has just repeated.
        saves = (saves and not is_saved) or (is_saved and is_due and evaluated_now)
        self._ranks.first(lambda: (ending, saves))
        if saves:
            self._checkpoint()
        if ending:
            raise _Stop(ending)

    def _is_due(self, interval: int, last: int, at_end: bool) -> bool:
        if at_end:
            return self._steps > last
        return interval > 0 and self._steps // interval > last // interval

    def _log(self) -> None:
        if self._journal.logged_at == self._steps:
            return
        self._journal.logged_at = self._steps
        self._journal.seconds = self._seconds_before + time.monotonic() - self._began_at
        episodes = self._model.ep_info_buffer or ()
        if episodes:
            mean_return = statistics.fmean(episode["r"] for episode in episodes)
            mean_length = statistics.fmean(episode["l"] for episode in episodes)
            self._journal.curve.append(
                (self._steps, round(self._journal.seconds, 1), mean_return, mean_length)
            )
            self._note = f"return {mean_return:.1f}"
            self._returns = [row[2] for row in self._journal.curve]
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["agent_steps", "seconds", "episode_return", "episode_length"])
        writer.writerows(self._journal.curve)
        write_text(text.getvalue(), self._folder.path / "progress.csv")
        self._model.dump_logs()

    def _evaluate(self) -> None:
        self._require_finite()
        run, played = self._run, []

        def count(episode: Episode) -> None:
            played.append(episode)
            note = f"evaluation {len(played)}/{run.evaluation_episodes}"
            self._progress.update(self._steps, note)

        try:
            with self._phase("evaluation"), self._stop.interrupting():
                result = evaluate(
                    self._model,
                    game=run.game,
                    protocol=run.protocol,
                    settings=self._settings.env,
                    episodes=run.evaluation_episodes,
                    seed=_stream(self._settings, "evaluation", self._steps),
                    num_threads=torch.get_num_threads(),
                    on_episode=count,
                )
        except StopNow:
            return  # interrupted: a resumed run repeats it first
        journal = self._journal
        journal.evaluated_at = self._steps
        journal.evaluations.append({"agent_steps": self._steps, **result.to_json()})
        path = self._folder.path / "evaluations.json"
        write_text(json.dumps(journal.evaluations, indent=1), path)
        self._model.logger.record("eval/episode_return_mean", result.mean)
        is_best = journal.best is None or result.mean > journal.best
        if is_best:
            journal.best = result.mean
            self._save(self._folder.path / "best", is_evaluated=True)
        self._progress.say(
            f"{self._steps:,} steps: {result}" + (", the best so far" if is_best else "")
        )

    def _last_evaluation(self) -> EvaluationResult | None:
        if not self._journal.evaluations:
            return None
        return EvaluationResult.from_json(self._journal.evaluations[-1])

    def _save(self, agent: Path, *, is_evaluated: bool) -> None:
        last = self._last_evaluation()
        save_agent(
            self._model,
            agent,
            self._settings,
            evaluations=(last,) if last is not None and is_evaluated else (),
            curve=[(row[0], row[2]) for row in self._journal.curve],
        )

    def _checkpoint(self) -> None:
        self._require_finite()
        self._journal.saved_at = self._steps
        self._journal.total_steps = self._run.total_steps
        self._journal.seconds = self._seconds_before + time.monotonic() - self._began_at
        journal = json.dumps(dataclasses.asdict(self._journal))
        with self._phase("checkpoints"), self._folder.checkpoint(self._steps) as path:
            write_checkpoints(self._model, journal, path, self._ranks)

    def _phase(self, name: str) -> AbstractContextManager[None]:
        return nullcontext() if self._profile is None else self._profile.phase(name)
