"""Films of an agent playing, as a television of the time would have shown it."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
from ale_py import Action
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm

from coordrl.agents.agent import Agent
from coordrl.agents.card import AgentError
from coordrl.agents.evaluation import Episode, Match, Play, game_for
from coordrl.config import AtariSettings, Protocol
from coordrl.emulator import GAMES, available
from coordrl.emulator.arguments import NUM_SEEDS, in_range
from coordrl.emulator.games import ACTIONS
from coordrl.emulator.lockstep import load_ale
from coordrl.envs import AtariVectorEnv, canonical_game
from coordrl.files import temporary_name

FRAMES_PER_SECOND = 60
_COLUMNS = 160
# The console's NTSC pixels are 12/7 times as wide as high; 5/3 is near, and gives whole pixels.
_ENLARGE = "scale=5*iw:3*ih:flags=neighbor"

_ENCODERS: dict[str, dict[str, Any]] = {
    ".mp4": {
        "codec": "libx264",
        "output_params": ["-vf", _ENLARGE, "-crf", "18", "-preset", "veryfast"],
    },
    # Viewers show a gif's frames for at least 1/50 s each. Every frame has a palette of its own,
    # which is exact, since the console has 128 colors.
    ".gif": {
        "codec": "gif",
        "pix_fmt_out": "pal8",
        "output_params": [
            "-filter_complex",
            f"fps=50,{_ENLARGE},split[a][b];[a]palettegen=stats_mode=single[p];"
            "[b][p]paletteuse=new=1:dither=none",
        ],
    },
}


def record_video(
    agent: Agent | BaseAlgorithm,
    path: Path | str,
    *,
    game: str | None = None,
    protocol: Protocol | None = None,
    settings: AtariSettings | None = None,
    deterministic: bool = False,
    seed: int = 0,
    max_frames: int = 18_000,
    on_frame: Callable[[int], None] | None = None,
) -> Episode | None:
    """Film a game from its first agent step to its end, every frame of the console.

    The film has 60 frames a second (a gif 50, with every sixth frame left out), as ale-py plays all
    games. The console's pixels are five wide and three high: 800 x 630, and up to 800 x 750 in
    games with more lines.

    The agent itself sees only a few small gray pictures a second. So a second console with the
    same seed and the same inputs plays alongside, and is filmed.

    Args:
        agent: Agent that plays; this, ``game``, ``protocol``, ``settings``, ``deterministic`` and
            ``seed`` are those of :func:`~coordrl.agents.evaluate`. With equal arguments, a
            deterministic agent plays the first game of that evaluation's first environment.
        path: File to write, ending in ``.mp4`` or ``.gif``; an old one is replaced at the end.
        game: See ``agent``.
        protocol: See ``agent``.
        settings: See ``agent``.
        deterministic: See ``agent``.
        seed: See ``agent``.
        max_frames: Frames after which the film ends even if the game goes on, rounded up to whole
            agent steps; 5 minutes by default.
        on_frame: Called with the number of frames so far, after each agent step.

    Returns:
        The game, or None if the film ended before the game.

    Raises:
        AgentError: If the agent doesn't fit the game, or the file cannot be written.
        ValueError: If there is no such game, or a number is out of range.
        TypeError: If a number is not whole.

    Example:
        >>> import tempfile
        >>> from coordrl.agents import load_agent
        >>> agent = load_agent("agents/Pong-ppo-all-s0")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     record_video(agent, f"{folder}/pong.mp4", max_frames=10, on_frame=print)
        4
        8
        12
    """
    max_frames = in_range("max_frames", max_frames, 1, None)
    seed = in_range("seed", seed, 0, None)
    path = Path(path)
    match = game_for(agent, game=game, protocol=protocol, settings=settings)
    lines = GAMES[canonical_game(match.game)].height
    with (
        Play(agent, match, 1, deterministic=deterministic, seed=seed) as play,
        _Camera(match, lines, play.env_seeds) as camera,
        _film(path, lines) as show,
    ):
        frames = 0
        while frames < max_frames:
            actions = play.choose()
            ended = play.step(actions)
            for frame in camera.step(actions):
                show(frame)
                frames += 1
            if on_frame is not None:
                on_frame(frames)
            if ended:
                _, episode = ended[0]
                if camera.episode_return != episode.episode_return:
                    raise RuntimeError(
                        f"the film shows a game of {camera.episode_return} points,"
                        f" the agent's had {episode.episode_return}"
                    )
                return episode
    return None


class _Camera:
    """A second console that plays the same game frame by frame, in color."""

    def __init__(self, match: Match, lines: int, seeds: NDArray[np.integer[Any]]) -> None:
        self._frame_skip = match.settings.frame_skip
        self._fires = match.settings.fire_after_life_loss
        self._envs = AtariVectorEnv(
            match.game,
            1,
            replace(
                match.settings,
                observation="rgb",
                frame_skip=1,
                stack_size=1,
                screen_size=(lines, _COLUMNS),
                max_pool=False,
                fire_after_life_loss=False,
            ),
            autoreset_mode="NextStep",
            render_mode="rgb_array" if available() else None,
        )
        _, info = self._envs.reset(seed=seeds)
        frames = int(info["frame_number"][0])
        self._ale = None if available() else _begun_in_ale(self._envs, int(seeds[0]), frames)
        self._presses_fire = False
        self.episode_return: float | None = None

    def __enter__(self) -> "_Camera":
        return self

    def __exit__(self, *_: object) -> None:
        self._envs.close()

    def step(self, actions: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        """Yield the frames ``(lines, 160, 3)`` of one agent step."""
        if self._presses_fire:
            actions = np.array([self._envs.action_meanings.index("FIRE")])
        lives = self._envs.lives
        for _ in range(self._frame_skip):
            _, _, _, _, info = self._envs.step(actions)
            if "game" in info:
                self.episode_return = float(info["game"]["episode_return"][0])
            # Observations would not do: as in ale-py, the last one lacks the game's last frame.
            if self._ale is None:
                yield self._envs.render()[0]
            else:
                self._ale.act(Action(ACTIONS.index(self._envs.action_meanings[actions[0]])))
                yield self._ale.getScreenRGB()
            if self.episode_return is not None:
                return
        # AtariVectorEnv presses FIRE for an agent in the step after a lost life.
        lost = 0 < self._envs.lives[0] < lives[0]
        self._presses_fire = lost and self._fires and "FIRE" in self._envs.action_meanings


def _begun_in_ale(envs: AtariVectorEnv, seed: int, frames: int) -> Any:
    """Return ale-py's console with the game that an environment has just begun.

    Args:
        envs: One environment of ale-py, which has no screens.
        seed: Its seed.
        frames: Frames that its reset has played.
    """
    ale = load_ale(envs.game, seed % NUM_SEEDS, envs.settings.repeat_action_probability)
    ale.reset_game()
    if envs.settings.fire_reset and "FIRE" in envs.action_meanings:
        ale.act(Action.FIRE)
    while ale.getFrameNumber() < frames:
        ale.act(Action.NOOP)
        if ale.game_over():
            ale.reset_game()
    return ale


def _require_whole(film: Path) -> None:
    """Raise a BrokenPipeError if the encoder silently failed to finish the film."""
    try:
        imageio_ffmpeg.count_frames_and_secs(str(film.resolve()))
    except RuntimeError as error:
        raise BrokenPipeError from error


@contextlib.contextmanager
def _film(path: Path, lines: int) -> Iterator[Callable[[NDArray[np.uint8]], None]]:
    """Yield a function that adds a frame to a film; the film replaces ``path`` at the end."""
    if path.suffix.lower() not in _ENCODERS:
        raise AgentError(f"a film ends in {' or '.join(_ENCODERS)}, got {path.name}")
    partial = temporary_name(path)
    partial = partial.with_name(partial.name + path.suffix)  # tells the encoder the format
    try:
        partial.touch()  # raises an OSError with a reason, which the encoder would not give
    except OSError as error:
        raise AgentError(f"cannot write {path}: {error.strerror}") from error
    encoder = imageio_ffmpeg.write_frames(
        str(partial.resolve()),  # or ffmpeg might take text before a colon for a protocol
        (_COLUMNS, lines),
        fps=FRAMES_PER_SECOND,
        quality=None,
        macro_block_size=1,
        ffmpeg_log_level="quiet",
        **_ENCODERS[path.suffix.lower()],
    )
    try:
        encoder.send(None)
        yield lambda frame: encoder.send(np.ascontiguousarray(frame))
        encoder.close()
        _require_whole(partial)
        partial.replace(path)
    except BrokenPipeError as error:
        raise AgentError(
            f"cannot write {path}: the encoder has stopped; is there room on the disk?"
        ) from error
    except OSError as error:
        reason = (error.strerror or str(error)).strip().split("\n")[0]
        raise AgentError(f"cannot write {path}: {reason}") from error
    finally:
        encoder.close()
        partial.unlink(missing_ok=True)
