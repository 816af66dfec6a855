"""Write a saved agent's network for other runtimes, after comparing it with the agent.

python scripts/export.py agents/Pong-ppo-all-s0 --onnx pong.onnx
python scripts/export.py agents/Pong-ppo-all-s0 --program pong.pt2 --dynamic none

The network takes observations as bytes, pictures (N, C, H, W) or RAM, and returns a number for
each action: the logit of its probability (A2C, PPO) or its value (DQN). The largest is the best
action.
"""

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from coordrl.agents import ActionScores, load_agent, random_observations
from coordrl.commands import escape_what_stdout_lacks, reader_may_leave
from coordrl.errors import UserError
from coordrl.export import ExportError, export_onnx, export_program
from coordrl.files import require_writable


@dataclass(frozen=True)
class Arguments:
    """Write an agent's network as ONNX, as a program of torch.export, or both."""

    agent: tyro.conf.Positional[Path]
    """Folder of a saved agent, or a zip of A2C, PPO or DQN of Stable-Baselines3."""
    onnx: Path | None = None
    """ONNX file to write; needs `pip install 'coordrl[export]'`."""
    program: Path | None = None
    """File of torch.export to write, usually named .pt2."""
    dynamic: Literal["none", "batch"] = "batch"
    """Whether the number of observations may differ from call to call."""
    trust_pickle: tyro.conf.FlagCreatePairsOff[bool] = False
    """Open a zip, which runs the code that is pickled in it."""


def main(argv: Sequence[str] | None = None) -> int:
    escape_what_stdout_lacks()
    arguments = tyro.cli(Arguments, args=argv)
    targets = [(arguments.onnx, export_onnx), (arguments.program, export_program)]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if not any(path for path, _ in targets):
            raise ExportError("nothing to write; give --onnx FILE or --program FILE")
        files = [path for path, _ in targets if path is not None]
        for path in files:
            require_writable(path)
        refuse_overwriting(files, arguments.agent)
        agent = load_agent(arguments.agent, trust_pickle=arguments.trust_pickle)
        scores, example = ActionScores(agent), random_observations(agent)
        for target, export in targets:
            if target is not None:
                difference = export(scores, example, target, dynamic=arguments.dynamic)
                with reader_may_leave():  # the other file is still written then
                    text = f"agrees with the agent to {difference:.1e} of its largest score"
                    print(f"{target}: {text}")
    except KeyboardInterrupt:
        print("stopped; no file was written in part", file=sys.stderr)
        return 130
    except UserError as error:
        print(f"export.py: {error}", file=sys.stderr)
        return 2
    return 0


def refuse_overwriting(files: Sequence[Path], agent: Path) -> None:
    """Raise an ExportError if one file would replace another, or the agent's own."""
    resolved = [path.resolve() for path in files]
    if len(set(resolved)) < len(resolved):
        raise ExportError(f"--onnx and --program would both be {files[0]}; name two files")
    agent = Path(os.path.realpath(agent))  # a link may lead in a circle
    for path in resolved:
        if agent in (path, path.parent):
            raise ExportError(f"{path} is part of the agent; name a file elsewhere")


if __name__ == "__main__":
    sys.exit(main())
