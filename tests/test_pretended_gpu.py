"""Commands on a GPU that is pretended: what they wait for, and whether they get through at all."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import stable_baselines3
import torch

import pretended_gpu
from coordrl.agents import load_agent
from pretended_gpu import Log

pytestmark = pytest.mark.slow

SCRIPTS = pretended_gpu.ROOT / "scripts"
Ended = tuple["subprocess.CompletedProcess[str]", Log]
RunOnGpu = Callable[..., Ended]


@pytest.fixture(scope="session")
def run_on_gpu(tmp_path_factory: pytest.TempPathFactory) -> RunOnGpu:
    """Return what runs a script and tells how it ended and what happened on the GPU."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile the GPU with")
    pytest.importorskip("cuda.bindings.nvrtc", reason="no cuda.bindings to call the driver with")
    if torch.version.cuda is not None:
        pytest.skip("a torch that was built for CUDA has its own GPU")
    folder = tmp_path_factory.mktemp("gpu")
    pretended_gpu.build(folder)
    paths = {"PYTHONPATH": str(pretended_gpu.HERE.parent), "COORDRL_CACHE": str(folder)}

    def run(script: Path, *arguments: str, spoils: int = 0) -> Ended:
        environment = {**os.environ, **paths, "PRETENDED_GPU_SPOILS": str(spoils)}
        log = folder / "log.json"
        log.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pretended_gpu", str(folder), str(log)]
        ended = subprocess.run(
            [*command, str(script), *arguments],
            env={**environment, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert log.exists(), ended.stderr
        return ended, Log(**json.loads(log.read_bytes()))

    return run


def waits_within(log: Log, *functions: str) -> dict[str, int]:
    """Return how often functions waited, by what for and in which one; not for checkpoints."""
    found: dict[str, int] = {}
    for wait, count in log.waits.items():
        what, _, places = wait.partition(": ")
        callers = places.split(" < ")
        if "run.between_updates" not in callers and not set(functions).isdisjoint(callers):
            key = f"{what}: {callers[0]}"
            found[key] = found.get(key, 0) + count
    return found


# The pretended GPU can fail. ----------------------------------------------------------------------

GRAPH = """
import torch
x, graph = torch.zeros(3, device="cuda"), torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    y = x + 1
x += 1
graph.replay()
assert y.tolist() == [2, 2, 2]
"""
ANOTHER_GRAPH = "with torch.cuda.graph(torch.cuda.CUDAGraph()): "
GAMES = """
import torch
from coordrl.config import AtariSettings
from coordrl.emulator.device import DeviceEmulator
settings, nowhere = AtariSettings(full_action_space=True), torch.cuda.Stream()
games = DeviceEmulator(("pong", "breakout"), 2, settings)
{}
games.reset(seed=0)
games.step(torch.zeros(2, dtype=torch.int64, device="cuda")).obs.float()
"""


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (GRAPH + GAMES.format(""), ""),
        (GRAPH + ANOTHER_GRAPH + "x.sum().item()", "when stream is capturing: _local_scalar_dense"),
        (GRAPH + ANOTHER_GRAPH + "x.to('cpu')", "when stream is capturing: copy to the host"),
        (GRAPH + "del x; graph.replay()", "a graph reads memory that nobody holds: (3,)"),
        (GRAPH + "x + torch.ones(3)", "Expected all tensors to be on the same device: add"),
        (GRAPH + "x.numpy()", "can't convert cuda:0 device type tensor to numpy"),
        (GAMES.format("del games._groups[1]._notes"), "CUDA_ERROR_ILLEGAL_ADDRESS"),
        (
            GAMES.format("games._branches._streams[0].wait_stream = nowhere.wait_stream"),
            "stream 2 has not waited for what 0 has written: nvrtc.launch < device.play",
        ),
        (
            GAMES.format("torch.cuda.current_stream().wait_stream = nowhere.wait_stream"),
            "stream 0 has not waited for what 2 has written",
        ),
    ],
)
def test_what_is_wrong_on_a_gpu_is_told(
    code: str, told: str, tmp_path: Path, run_on_gpu: RunOnGpu
) -> None:
    script = tmp_path / "script.py"
    script.write_text(code)

    ended, log = run_on_gpu(script)

    assert bool(told) == (ended.returncode != 0 or log.problems != [])
    assert told in ended.stderr + "\n".join(log.problems)


# The commands. ------------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [False, True])
def test_the_emulator_is_measured(together: bool, tmp_path: Path, run_on_gpu: RunOnGpu) -> None:
    command = "cuda --games Pong Breakout --num-envs 6 --threads 2 4 --spare-bytes 0 60000"
    command += " --warm-up 2 --steps 2 --turns 2 --no-training --json"
    flags = ["--together"] if together else []

    ended, log = run_on_gpu(
        SCRIPTS / "benchmark.py", *command.split(), str(tmp_path / "cuda.json"), *flags
    )

    assert ended.returncode == 0, ended.stderr
    assert log.problems == []
    assert waits_within(log, "device.step") == {}
    kernels, *others = json.loads((tmp_path / "cuda.json").read_bytes())["rows"]
    assert kernels["kernels of games"] == 2
    rows = [row for row in others if "game" in row]
    spreads = [(2, 0), (2, 60000), (4, 0), (4, 60000)]
    assert [(row["game"], row["threads"], row["spare_bytes"]) for row in rows] == [
        (game, *spread)
        for game in (["2 games"] if together else ["pong", "breakout"])
        for spread in spreads
    ]
    # A reset, two steps to warm up and four to measure, of each game.
    assert log.launches == dict.fromkeys(("play_environments", "show_observations"), 7 * 2 * 4)
    for row in rows:
        assert row["frames a second"] > 0
        assert row["bytes an environment"] > row["of them observations"]


@pytest.mark.parametrize("spoils", [0, 30])
def test_a_difference_on_the_gpu_is_found(spoils: int, run_on_gpu: RunOnGpu) -> None:
    command = "--device cuda --games pong --steps 20 --num-envs 2 --workers 1"

    ended, log = run_on_gpu(SCRIPTS / "verify_emulator.py", *command.split(), spoils=spoils)

    assert log.problems == []
    assert waits_within(log, "device.step") == {}
    if spoils:
        assert ended.returncode == 1, ended.stderr
        assert "RAM at (0, 0), the first of 1, is" in ended.stdout
    else:
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.startswith("1 games, 0 that differ;")


SETTINGS = (
    *("env.screen_size=[36, 36]", "env.max_frames_per_episode=60", "extractor.specs=[[4, 8, 8]]"),
    *("extractor.features_dim=8", "run.num_envs=4", "run.evaluation_interval=0"),
    *("run.evaluation_episodes=1", "run.checkpoint_interval=64", "acceleration.cuda_graphs=true"),
)
OWN_SETTINGS = {
    "ppo": ("run.stagger=2", "algorithm.n_steps=8", "algorithm.batch_size=16"),
    "a2c": (),
    "dqn": (
        *("algorithm.buffer_size=200", "algorithm.learning_starts=16", "algorithm.batch_size=8"),
        *("algorithm.train_freq=4", "algorithm.target_update_interval=64"),
    ),
}


def expected_waits(algo: str, rollouts: int, updates: int) -> dict[str, int]:
    """Return all that is waited for in rollouts and updates."""
    once_a_rollout = {
        "index by a mask: callbacks.read": rollouts,  # games that ended
        "tolist: callbacks.read": rollouts,
        "tolist: base._read": updates,  # what is logged of the updates
    }
    begin = {"ppo": "on_policy", "a2c": "on_policy", "dqn": "dqn"}[algo]
    at_the_start = {
        f"copy from the host: {begin}.collect_rollouts": 2,  # what the games began with
        "torch.cuda.synchronize: networks._call": 1 if algo == "a2c" else 2,  # captures
    }
    if algo == "dqn":
        once_a_rollout["_local_scalar_dense: dqn.collect_rollouts"] = rollouts  # games that ended
        at_the_start["stream.synchronize: base._basis"] = 1  # a layer of the target network
        at_the_start["equal: buffers.require_goes_on"] = 1  # games that others may have stepped
    else:
        once_a_rollout["nonzero: buffers.bootstrap_timeouts"] = rollouts  # games cut off
    return once_a_rollout | at_the_start


@pytest.mark.parametrize(("algo", "steps_of_rollout"), [("ppo", 8), ("a2c", 5), ("dqn", 4)])
def test_an_agent_is_trained_without_waiting_and_resumed(
    algo: str, steps_of_rollout: int, tmp_path: Path, run_on_gpu: RunOnGpu
) -> None:
    folder, steps, num_envs = tmp_path / "run", 240, 4
    command = f"--env Breakout --device cuda --track none --algo {algo} --steps {steps}"
    arguments = [*command.split(), "--run-dir", str(folder)]
    arguments += ["--set", *SETTINGS, *OWN_SETTINGS[algo]]

    ended, log = run_on_gpu(SCRIPTS / "train_atari.py", *arguments)

    assert ended.returncode == 0, ended.stderr
    assert log.problems == []
    rollouts = -(-steps // (num_envs * steps_of_rollout))
    updates = rollouts - (algo == "dqn")  # which waits for transitions
    functions = [f"{module}.{name}" for module in ("on_policy", "dqn")
                 for name in ("collect_rollouts", "train")]  # fmt: skip
    assert waits_within(log, *functions) == expected_waits(algo, rollouts, updates)
    assert log.launches["capture"] == (1 if algo == "a2c" else 2)
    assert log.launches["replay"] > steps / num_envs - 4

    # As if it had been killed behind the checkpoint before the last.
    *_, last = sorted((folder / "checkpoints").iterdir())
    shutil.rmtree(last)
    ended, log = run_on_gpu(SCRIPTS / "train_atari.py", *arguments, "--resume")

    assert ended.returncode == 0, ended.stderr
    assert log.problems == []
    assert 0 < log.launches["play_environments"] < steps / num_envs
    plain = getattr(stable_baselines3, algo.upper()).load(folder / "last/agent.zip", device="cpu")
    for name, value in load_agent(folder / "last", device="cpu").policy.state_dict().items():
        assert torch.equal(plain.policy.state_dict()[name], value)
