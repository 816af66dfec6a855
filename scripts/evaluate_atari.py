"""Evaluate how well an agent plays: whole games, the game's own points, with an interval.

python scripts/evaluate_atari.py agents/Pong-ppo-all-s0 --episodes 30
python scripts/evaluate_atari.py downloaded.zip --env Breakout --trust-pickle --video game.mp4
"""

import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table

from coordrl.agents import (
    Agent,
    AgentError,
    Episode,
    EvaluationResult,
    dump_json,
    evaluate,
    load_agent,
    record_video,
)
from coordrl.agents.saving import AGENT_FILES
from coordrl.agents.video import FRAMES_PER_SECOND
from coordrl.commands import escape_what_stdout_lacks, reader_may_leave
from coordrl.config import Protocol
from coordrl.errors import UserError
from coordrl.files import require_writable
from coordrl.memory import lacking_memory
from coordrl.progress import Progress
from coordrl.records import write_text


@dataclass(frozen=True)
class Arguments:
    """Evaluate an agent over whole games, and report the game's own points."""

    agent: tyro.conf.Positional[Path]
    """Folder of a saved agent, or a zip of A2C, PPO or DQN of Stable-Baselines3."""
    env: str | None = None
    """Game; only needed for a zip."""
    episodes: int = 100
    """Games for each policy."""
    policy: Literal["both", "stochastic", "deterministic"] = "both"
    """Sample actions from the policy, take the likeliest one, or report both."""
    protocol: Protocol | None = None
    """Rules: SB3's and the zoo's, or Machado et al. (2018); those of the training by default."""
    seed: int = 0
    """Seed of the evaluation."""
    num_envs: int = 8
    """Games played at the same time."""
    threads: int | None = None
    """Threads of the network on the CPU, and of the games; all cores by default."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the network; auto takes the GPU if there is one."""
    rom_path: Path | None = None
    """ROM image of the game, or a folder with it; sets ALE_ROMS_DIR. Those in ale-py by default."""
    video: Path | None = None
    """Film a game (.mp4 or .gif), with sampled actions unless --policy deterministic."""
    video_seconds: float = 300.0
    """End the film after this many seconds, if the game lasts longer."""
    json: Path | None = None
    """Write all results as JSON."""
    trust_pickle: tyro.conf.FlagCreatePairsOff[bool] = False
    """Open a zip, which runs the code that is pickled in it."""


def main(argv: Sequence[str] | None = None) -> int:
    escape_what_stdout_lacks()
    arguments = tyro.cli(Arguments, args=argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if arguments.rom_path is not None:
        os.environ["ALE_ROMS_DIR"] = str(arguments.rom_path)
    try:
        refuse_what_fails_late(arguments)
        if arguments.threads is not None:
            torch.set_num_threads(arguments.threads)
        agent = load_agent(
            arguments.agent, device=arguments.device, trust_pickle=arguments.trust_pickle
        )
        if arguments.video is not None:
            film(agent, arguments, arguments.video)
        results = play(agent, arguments)
        if arguments.json is not None:
            table = {
                "agent": str(arguments.agent),
                "results": [result.to_json() for result in results],
            }
            write_text(dump_json(table), arguments.json)
        print_table(results, str(arguments.agent))
    except KeyboardInterrupt:
        print("stopped before the end; nothing was reported", file=sys.stderr)
        return 130
    except UserError as error:
        print(f"evaluate_atari.py: {error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        reason = lacking_memory(error)
        if reason is None:
            raise
        advice = f"there is not enough memory; lower --num-envs ({reason})"
        print(f"evaluate_atari.py: {advice}", file=sys.stderr)
        return 2
    return 0


def refuse_what_fails_late(arguments: Arguments) -> None:
    """Raise an AgentError for mistakes that would be noticed only after all games, or never."""
    for name in ("episodes", "num_envs", "threads"):
        number = getattr(arguments, name)
        if number is not None and number < 1:
            raise AgentError(f"--{name.replace('_', '-')} must be at least 1, got {number}")
    if arguments.seed < 0:
        raise AgentError(f"--seed must be at least 0, got {arguments.seed}")
    if not 0 < arguments.video_seconds < math.inf:
        seconds = f"{arguments.video_seconds:g}"
        raise AgentError(f"--video-seconds must be above 0 and finite, got {seconds}")
    require_places(arguments)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise AgentError("--device cuda, but torch finds no GPU; choose --device cpu")


def require_places(arguments: Arguments) -> None:
    """Raise an AgentError or a RunError if results cannot be written or would replace others."""
    if arguments.json is not None and arguments.json == arguments.video:
        raise AgentError(f"--json and --video would both be {arguments.json}; name two files")
    agent = Path(os.path.realpath(arguments.agent))  # a link may lead in a circle
    parts = (agent, *(agent / name for name in AGENT_FILES))
    for option, output in (("--json", arguments.json), ("--video", arguments.video)):
        if output is None:
            continue
        require_writable(output)
        if output.resolve() in parts:
            raise AgentError(f"{output} is part of the agent; name another file for {option}")


def play(agent: Agent, arguments: Arguments) -> list[EvaluationResult]:
    policies = ["stochastic", "deterministic"] if arguments.policy == "both" else [arguments.policy]
    returns: list[float] = []
    with Progress("evaluating", arguments.episodes * len(policies), "episodes") as progress:

        def count(episode: Episode) -> None:
            returns.append(episode.episode_return)
            progress.update(len(returns), f"last return {episode.episode_return:g}")

        return [
            evaluate(
                agent,
                game=arguments.env,
                protocol=arguments.protocol,
                episodes=arguments.episodes,
                deterministic=policy == "deterministic",
                seed=arguments.seed,
                num_envs=arguments.num_envs,
                num_threads=arguments.threads or 0,
                on_episode=count,
            )
            for policy in policies
        ]


def film(agent: Agent, arguments: Arguments, path: Path) -> None:
    max_frames = math.ceil(arguments.video_seconds * FRAMES_PER_SECOND)
    with Progress("filming", max_frames, "frames at most") as progress:
        episode = record_video(
            agent,
            path,
            game=arguments.env,
            protocol=arguments.protocol,
            deterministic=arguments.policy == "deterministic",
            seed=arguments.seed,
            max_frames=max_frames,
            on_frame=progress.update,
        )
    what = "the beginning of a game" if episode is None else f"{episode.episode_return:g} points"
    with reader_may_leave():
        print(f"{path}: {what}")


def print_table(results: Sequence[EvaluationResult], title: str) -> None:
    first = results[0]
    table = Table(title=f"{title}: {first.game}, {first.protocol} protocol, seed {first.seed}")
    table.add_column("unclipped return")
    for result in results:
        table.add_column("deterministic" if result.deterministic else "stochastic", justify="right")
    rows: dict[str, Callable[[EvaluationResult], str]] = {
        "mean": lambda result: f"{result.mean:,.2f}",
        "95 % interval of the mean": lambda result: (
            "-" if result.interval is None else "{:,.2f} .. {:,.2f}".format(*result.interval)
        ),
        "median": lambda result: f"{result.median:,g}",
        "lowest .. highest": lambda result: (
            f"{min(result.episode_returns):,g} .. {max(result.episode_returns):,g}"
        ),
        "human-normalized mean": lambda result: (
            "-" if result.human_normalized is None else f"{result.human_normalized:.2f}"
        ),
        "episodes": lambda result: f"{result.episodes}",
        "of these cut off at the limit": lambda result: f"{result.truncated}",
        "mean length, frames": lambda result: f"{result.mean_frames:,.0f}",
    }
    for name, cell in rows.items():
        table.add_row(name, *(cell(result) for result in results))
    console = Console()
    with console.capture() as text:  # rich would end the process if the reader is gone
        console.print(table)
    with reader_may_leave():
        print(text.get(), end="")


if __name__ == "__main__":
    sys.exit(main())
