"""Train an agent to play an Atari game, with CoordConv and Stable-Baselines3.

python scripts/train_atari.py --env Pong
python scripts/train_atari.py --env Breakout --algo dqn --set run.num_envs=16 --track none
python scripts/train_atari.py --env Pong --resume
torchrun --standalone --nproc-per-node 8 scripts/train_atari.py --env Pong --device cuda
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from coordrl.algorithms import ALGORITHMS
from coordrl.backbone import Coords
from coordrl.commands import escape_what_stdout_lacks, reader_may_leave
from coordrl.config import Override, Protocol, SettingsError, TrainingSettings, parse_overrides
from coordrl.errors import UserError
from coordrl.ranks import is_first
from coordrl.runs import SETTINGS_FILE
from coordrl.training import (
    TrainingResult,
    default_config,
    load_training_settings,
    run_name,
    train,
)

Switch = tyro.conf.FlagCreatePairsOff[bool]

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RUNS = Path("runs")


def shown(metavar: str, default: str) -> object:
    """Show in the help what an option takes, and its default."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"[{default}]")


@dataclass(frozen=True)
class Arguments:
    """Train an agent to play an Atari game, with CoordConv and Stable-Baselines3.

    All other settings come from the TOML file in configs/ for the algorithm and the device: on a
    GPU, games, rollouts and updates all stay there; on the CPU they are the settings of
    rl-baselines3-zoo, or, for PPO, a recipe for two cores. Ctrl-C saves the run, and --resume
    continues it. Under torchrun several GPUs or hosts train one agent.
    """

    env: Annotated[str | None, shown("GAME", "Pong")] = None
    """Game: Pong, MsPacman, ms_pacman, ALE/Pong-v5 ..."""
    algo: Annotated[Literal["a2c", "ppo", "dqn"] | None, shown("{a2c,ppo,dqn}", "ppo")] = None
    """Algorithm of Stable-Baselines3."""
    coords: Annotated[Coords | None, shown("{none,first,all}", "all")] = None
    """Which convolutions see the coordinates of their pixels."""
    with_r: Switch = False
    """Show them the distance from the center as well."""
    steps: Annotated[int | None, shown("STEPS", "of the configuration")] = None
    """Length of the run in agent steps over all environments; each is four frames."""
    seed: Annotated[int | None, shown("SEED", "0")] = None
    """Seed of the run."""
    device: Annotated[Literal["auto", "cpu", "cuda"] | None, shown("{auto,cpu,cuda}", "auto")] = (
        None
    )
    """Device of the network; auto takes the GPU if there is one."""
    threads: Annotated[int | None, shown("THREADS", "all cores")] = None
    """Threads of the network on the CPU, and of the games it learns from there."""
    protocol: Annotated[Protocol | None, shown("{classic,machado}", "classic")] = None
    """Rules: SB3's and the zoo's, or those of Machado et al. (2018)."""
    config: Annotated[Path | None, shown("FILE", "by algorithm and device")] = None
    """Settings to start from; configs/ppo.toml has the zoo's PPO."""
    set: Annotated[
        tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction, shown("KEY=VALUE ...", "none")
    ] = ()
    """Any setting by its full name: --set algorithm.n_steps=64 run.num_envs=16."""
    target_return: Annotated[float | None, shown("RETURN", "of the configuration")] = None
    """End as soon as an evaluation has this mean return."""
    run_dir: Annotated[Path | None, shown("FOLDER", "runs/<game>-<algo>-<coords>-s<seed>")] = None
    """Run folder."""
    resume: Switch = False
    """Continue the run in the run folder."""
    track: Annotated[
        Literal["tensorboard", "wandb", "none"] | None,
        shown("{tensorboard,wandb,none}", "tensorboard"),
    ] = None
    """Tracker that shows the learning curves."""
    rom_path: Annotated[Path | None, shown("PATH", "those in ale-py")] = None
    """ROM image of the game, or a folder with it; sets ALE_ROMS_DIR."""
    profile: Switch = False
    """At the end, print where the time went."""

    def overrides(self) -> list[Override]:
        """Return the settings that were given; later ones win."""
        flags = {
            "run.game": ("--env", self.env),
            "run.algo": ("--algo", self.algo),
            "extractor.coords": ("--coords", self.coords),
            "extractor.with_r": ("--with-r", self.with_r or None),
            "run.total_steps": ("--steps", self.steps),
            "run.seed": ("--seed", self.seed),
            "run.device": ("--device", self.device),
            "run.protocol": ("--protocol", self.protocol),
            "run.target_return": ("--target-return", self.target_return),
            "run.track": ("--track", self.track),
        }
        given = [
            Override(key, value, flag) for key, (flag, value) in flags.items() if value is not None
        ]
        return given + parse_overrides(self.set)


def main(argv: Sequence[str] | None = None) -> int:
    escape_what_stdout_lacks()
    arguments = tyro.cli(Arguments, args=argv, config=(tyro.conf.DisallowNone,))
    if arguments.rom_path is not None:
        os.environ["ALE_ROMS_DIR"] = str(arguments.rom_path)
    try:
        settings, folder, origin = choose(arguments)
        if is_first():
            with reader_may_leave():
                print(
                    f"{run_name(settings)} with the settings of {origin}, in {folder}", flush=True
                )
        result = train(
            settings,
            folder,
            resume=arguments.resume,
            profile=arguments.profile,
            threads=arguments.threads,
        )
    except KeyboardInterrupt:
        print("aborted; --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    except UserError as error:
        print(f"train_atari.py: {error}", file=sys.stderr)
        return 2
    if not is_first():
        return 0  # or torchrun would end rank 0, which may still be saving the agent
    with reader_may_leave():
        report(result)
    return 0 if result.signal_number is None else 128 + result.signal_number


def choose(arguments: Arguments) -> tuple[TrainingSettings, Path, Path]:
    """Return the settings, the run folder, and the file that the settings come from."""
    overrides = arguments.overrides()
    if arguments.resume and arguments.config is None and arguments.run_dir is not None:
        resumed = arguments.run_dir / SETTINGS_FILE
        if resumed.exists():
            return load_training_settings(resumed, overrides), arguments.run_dir, resumed
    if arguments.config is not None:
        config = arguments.config
    else:
        given = {override.key: str(override.value) for override in overrides}
        algo, device = given.get("run.algo", "ppo"), given.get("run.device", "auto")
        if algo not in ALGORITHMS:
            raise SettingsError(f"run.algo must be one of {', '.join(ALGORITHMS)}, got {algo!r}")
        config = CONFIGS / default_config(algo, device)
    settings = load_training_settings(config, overrides)
    folder = arguments.run_dir or RUNS / run_name(settings)
    resumed = folder / SETTINGS_FILE
    if arguments.resume and arguments.config is None and resumed.exists():
        return load_training_settings(resumed, overrides), folder, resumed
    return settings, folder, config


def report(result: TrainingResult) -> None:
    """Print how the run ended and where its agents are."""
    if result.profile is not None:
        print(f"\n{result.profile}\n")
    print(f"{result.ending} after {result.steps:,} steps")
    if result.evaluation is not None:
        print(f"last evaluation: {result.evaluation}")
    print(f"agent: {result.agent}")
    if result.best_agent is not None:
        print(f"agent of the best evaluation: {result.best_agent}")
    if result.signal_number is not None:
        print("go on with --resume")


if __name__ == "__main__":
    sys.exit(main())
