"""Training by several processes: together they do what one process does with all games."""

import datetime
import functools
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch.testing import assert_close

from coordrl.agents import load_agent
from coordrl.algorithms import model_keywords
from coordrl.config import AtariSettings, RunSettings, TrainingSettings
from coordrl.device_algorithms import make_device_model
from coordrl.ranks import Ranks, is_first, join, leave
from coordrl.sb3_envs import make_sb3_env
from coordrl.training import TrainingResult, train
from coordrl.training.checkpoint import Restored, read_checkpoints, write_checkpoints
from coordrl.training.run import _Follower

ROOT = Path(__file__).parents[1]
GAME = AtariSettings(screen_size=(36, 40), stack_size=2)
NUM_ENVS, STEPS, RANKS = 4, 6, 2
SEEDED = threading.Lock()  # torch's random stream belongs to all threads
ALGORITHM: dict[str, dict[str, Any]] = {
    "ppo": {"n_steps": STEPS, "batch_size": STEPS * NUM_ENVS, "n_epochs": 2, "clip_range": 0.01},
    "a2c": {"n_steps": STEPS, "normalize_advantage": True},
    "dqn": {"buffer_size": 40, "batch_size": STEPS * NUM_ENVS},
}


def updated(algo: Any, ranks: Ranks) -> tuple[dict[str, torch.Tensor], dict[str, Any], int]:
    """Update a model by this rank's share of the same data; return weights, logs, batch size."""
    settings = TrainingSettings(
        run=RunSettings(algo=algo),
        algorithm=ALGORITHM[algo] | {"learning_rate": 0.01},
        extractor={"specs": [[4, 8, 8], [4, 3, 1]], "features_dim": 8},
    )
    env = make_sb3_env("Breakout", NUM_ENVS // ranks.count, GAME, num_threads=1)
    with SEEDED:
        model: Any = make_device_model(settings, env, seed=0, ranks=ranks)
    ranks.gather(None)  # a rank that already shuffles would draw from the stream another one seeds
    env.close()
    model.set_logger(Logger(None, []))
    rng = np.random.default_rng(0)
    shape = (STEPS, NUM_ENVS)
    obs, next_obs = (
        torch.from_numpy(rng.integers(0, 256, (*shape, 2, 36, 40), np.uint8)) for _ in range(2)
    )
    actions = torch.from_numpy(rng.integers(0, 4, shape))
    numbers = [torch.from_numpy(rng.standard_normal(shape).astype(np.float32)) for _ in range(4)]
    own = slice(ranks.index * env.num_envs, (ranks.index + 1) * env.num_envs)
    if algo == "dqn":
        columns = [t[:, own].flatten(0, 1) for t in (obs, next_obs, actions, *numbers)]
        dones = (columns[4] > 1).float()[:, None]
        columns = [columns[0], columns[2][:, None], columns[1], dones, columns[3][:, None]]
        model.replay_buffer.sample = lambda *_, **__: ReplayBufferSamples(*columns)
        model.train(gradient_steps=2, batch_size=model.batch_size)
    else:
        buffer = model.rollout_buffer
        names = ("observations", "actions", "values", "log_probs", "advantages", "returns")
        for name, tensor in zip(names, (obs, actions, *numbers), strict=True):
            getattr(buffer, name).copy_(tensor[:, own])
        buffer.log_probs.sub_(1.4)
        buffer.full = True
        model.train()
    logged = dict(model.logger.name_to_value)
    return model.policy.state_dict(), logged, getattr(model, "batch_size", 0)


def serve(rank: int, store: str, answers: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    ranks = Ranks(rank, RANKS)
    results = {}
    for algo in ALGORITHM:
        weights, logged, batch_size = updated(algo, ranks)
        arrays = {name: value.numpy() for name, value in weights.items()}  # in no shared memory
        results[algo] = arrays, logged, batch_size
    try:
        ranks.first(lambda: 1 // 0)
    except ZeroDivisionError:
        results["error"] = ({}, {}, 0)
    results["words"] = ({}, {"first": ranks.first(lambda: rank), "all": ranks.gather(rank)}, 0)
    answers.put((rank, results))
    dist.destroy_process_group()


def assert_learn_as_one(results: dict[int, dict[str, Any]]) -> None:
    for algo in ALGORITHM:
        weights, logged, batch_size = updated(algo, Ranks())
        for rank in range(RANKS):
            theirs, their_log, their_batch_size = results[rank][algo]
            for name, value in weights.items():
                assert_close(torch.as_tensor(theirs[name]), value, rtol=1e-4, atol=1e-6)
                assert np.array_equal(theirs[name], results[0][algo][0][name])
            assert their_batch_size == batch_size / RANKS
            for key in set(logged) - {"train/explained_variance"}:  # that of each rank's own games
                assert their_log[key] == pytest.approx(logged[key], rel=1e-4, abs=1e-6), key


@dataclass(frozen=True)
class Threads(Ranks):
    """Ranks that are threads of this process, and exchange what processes would."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(RANKS))
    values: dict[int, Any] = field(default_factory=dict)

    def gather(self, value: Any) -> list[Any]:
        """Exchange values; twice, so that the next ones come after these were read."""
        self.values[self.index] = value
        self.barrier.wait(60)
        values = [self.values[rank] for rank in range(RANKS)]
        self.barrier.wait(60)
        return values

    def first(self, work: Callable[[], Any]) -> Any:
        """Tell all what rank 0 finds."""
        return self.gather(work() if self.index == 0 else None)[0]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add up tensors."""
        return tensor.copy_(torch.stack(self.gather(tensor.clone())).sum(dim=0))


def test_two_ranks_learn_what_one_process_learns() -> None:
    first = Threads(0, RANKS)
    both = (first, Threads(1, RANKS, first.barrier, first.values))

    def learn(ranks: Ranks) -> dict[str, Any]:
        return {algo: updated(algo, ranks) for algo in ALGORITHM}

    with ThreadPoolExecutor(RANKS) as pool:
        assert_learn_as_one(dict(enumerate(pool.map(learn, both))))


def test_every_rank_goes_on_from_its_own_games(tmp_path: Path) -> None:
    settings = TrainingSettings(
        run=RunSettings(algo="dqn", on_device=True),
        env=GAME,
        algorithm={"buffer_size": 40, "batch_size": 8, "learning_starts": 0},
        extractor={"specs": [[4, 8, 8], [4, 3, 1]], "features_dim": 8},
    )
    first = Threads(0, RANKS)
    both = (first, Threads(1, RANKS, first.barrier, first.values))
    folders = tmp_path, tmp_path / "none"  # only the first one has a folder

    def built(ranks: Ranks, seed: int) -> Any:
        env = make_sb3_env("Breakout", 2, GAME, seed=seed + ranks.index, num_threads=1)
        with SEEDED:
            return make_device_model(settings, env, seed=seed + ranks.index, ranks=ranks)

    def write(ranks: Ranks) -> Any:
        model = built(ranks, seed=0)
        model.set_logger(Logger(None, []))
        model.learn(24)
        write_checkpoints(model, f"of rank {ranks.index}", folders[ranks.index], ranks)
        return model

    def read(ranks: Ranks) -> tuple[Any, Restored]:
        model = built(ranks, seed=5)
        return model, read_checkpoints(model, folders[ranks.index], ranks)

    with ThreadPoolExecutor(RANKS) as pool:
        written, restored = list(pool.map(write, both)), list(pool.map(read, both))

    assert not np.array_equal(written[0]._last_obs, written[1]._last_obs)
    for rank, (model, told) in enumerate(restored):
        assert (told.journal, told.new_games) == (f"of rank {rank}", None)
        assert np.array_equal(model._last_obs, written[rank]._last_obs)
        steps = [each.env.step(np.array([2, 3]))[0] for each in (model, written[rank])]
        assert np.array_equal(*steps)
        for name, array in written[rank].replay_buffer.state().items():
            assert np.array_equal(model.replay_buffer.state()[name], array), name


def test_a_signal_to_one_rank_stops_all_with_what_each_goes_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunSettings("Breakout", algo="a2c", num_envs=2, on_device=True, device="cpu",
                      track="none", total_steps=96, evaluation_episodes=1)  # fmt: skip
    small = {"specs": [[4, 8, 8], [4, 3, 1]], "features_dim": 8}
    settings = TrainingSettings(run=run, env=GAME, algorithm={"n_steps": 4}, extractor=small)
    own, left = threading.local(), []
    between = _Follower.between_updates

    def interrupted(run: _Follower, **options: bool) -> None:
        if run._steps == 32:
            run._stop.signal_number = signal.SIGTERM
        between(run, **options)

    def learn(ranks: Ranks, *, resume: bool) -> TrainingResult:
        own.ranks = ranks
        return train(settings, tmp_path / "run", resume=resume)

    monkeypatch.setattr(_Follower, "between_updates", interrupted)
    monkeypatch.setattr("coordrl.training.run.join", lambda _: own.ranks)
    monkeypatch.setattr("coordrl.training.run.leave", lambda: left.append(own.ranks.index))
    first = Threads(0, RANKS)
    both = (first, Threads(1, RANKS, first.barrier, first.values))
    with ThreadPoolExecutor(RANKS) as pool:
        results = list(pool.map(functools.partial(learn, resume=False), both))

    assert [(result.ending, result.steps) for result in results] == [("stopped", 32)] * RANKS
    assert [result.signal_number for result in results] == [signal.SIGTERM] * RANKS
    assert sorted(left) == [0, 1]
    files = {path.name for path in (tmp_path / "run" / "checkpoints" / "000000000032").iterdir()}
    assert files >= {"state.pt", "games.bin", "rank_1.state.pt", "rank_1.games.bin"}
    monkeypatch.setattr(_Follower, "between_updates", between)
    with ThreadPoolExecutor(RANKS) as pool:
        results = list(pool.map(functools.partial(learn, resume=True), both))
    assert [(result.ending, result.steps) for result in results] == [("finished", 96)] * RANKS


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    processes = [
        context.Process(target=serve, args=(rank, str(tmp_path / "store"), answers))
        for rank in range(RANKS)
    ]
    for process in processes:
        process.start()
    results = dict(answers.get(timeout=240) for _ in processes)
    for process in processes:
        process.join()

    assert_learn_as_one(results)
    for rank in range(RANKS):
        assert "error" in results[rank]
        assert results[rank]["words"][1] == {"first": 0, "all": [0, 1]}


def test_a_share_has_to_be_whole() -> None:
    assert Ranks(1, 3).share(12, "run.num_envs") == 4
    with pytest.raises(ValueError, match=r"run.num_envs = 8 is shared by 3 processes, so it must"):
        Ranks(1, 3).share(8, "run.num_envs")


def test_dqn_makes_as_many_updates_as_with_one_process() -> None:
    settings = TrainingSettings(run=RunSettings(algo="dqn"), algorithm={"gradient_steps": 3})
    assert model_keywords(settings, NUM_ENVS)["gradient_steps"] == 3 * NUM_ENVS
    env = make_sb3_env("Breakout", 3, GAME)  # 2 would not tell 2 * 2 from 2 + 2
    model: Any = make_device_model(
        TrainingSettings(
            run=RunSettings(algo="dqn"), algorithm={"buffer_size": 80, "gradient_steps": 3}
        ),
        env,
        seed=0,
        ranks=Ranks(0, 2),
    )
    env.close()
    assert (model.gradient_steps, model.batch_size, model.buffer_size) == (18, 16, 40)
    assert model.replay_buffer.buffer_size == 40 // 3
    assert model.target_update_interval == 5000


def test_dqn_that_updates_after_every_step_counts_those_of_all_processes() -> None:
    algorithm = {"gradient_steps": -1, "buffer_size": 80, "learning_starts": 0, "batch_size": 8}
    settings = TrainingSettings(run=RunSettings(algo="dqn"), env=GAME, algorithm=algorithm)
    updates = []
    for ranks in (Ranks(), Ranks(0, 2)):
        model: Any = make_device_model(
            settings, make_sb3_env("Breakout", 4 // ranks.count, GAME), seed=0, ranks=ranks
        )
        model.set_logger(Logger(None, []))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Ranks, "sum", lambda _, numbers: numbers)
            patch.setattr(Ranks, "gather", lambda _, item: [item])
            patch.setattr(Ranks, "average_gradients", lambda *_: None)
            model.learn(32)
        updates.append((model.num_timesteps, model._n_updates))
    assert updates == [(32, 32), (32, 32)]


def torchrun(*arguments: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(RANKS)]
    command += ["--standalone", str(ROOT / "scripts" / "train_atari.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("algo", ALGORITHM)
def test_torchrun_trains_and_goes_on_bit_for_bit(algo: str, tmp_path: Path) -> None:
    keys = {
        "ppo": ("algorithm.n_steps=8", "algorithm.batch_size=16"),
        "a2c": ("algorithm.n_steps=8",),
        "dqn": ("algorithm.buffer_size=64", "algorithm.learning_starts=16"),
    }[algo]
    arguments = (
        *("--env", "Breakout", "--algo", algo, "--device", "cpu", "--track", "none"),
        *("--config", str(ROOT / "configs" / f"{algo}.toml"), "--steps", "192", "--set"),
        *("run.on_device=true", "run.num_envs=4", "env.screen_size=[36, 40]", "env.noop_max=0"),
        *("run.checkpoint_interval=64", "run.evaluation_interval=0", "run.evaluation_episodes=1"),
        *("extractor.specs=[[4, 8, 8]]", "extractor.features_dim=8", *keys),
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    torchrun(*arguments, "--run-dir", str(whole))
    shutil.copytree(whole, killed)
    for name in ("last", "checkpoints/000000000192"):
        shutil.rmtree(killed / name)

    torchrun("--resume", "--run-dir", str(killed))

    first, second = (load_agent(folder / "last").policy.state_dict() for folder in (whole, killed))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    files = {path.name for path in (killed / "checkpoints" / "000000000192").iterdir()}
    assert {"state.pt", "rank_1.state.pt", "games.bin", "rank_1.games.bin"} <= files


def test_what_ranks_exchange_reaches_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    made: list[int] = []

    def broadcast(outcome: list[Any], src: int) -> None:
        if not sent:  # rank 0 comes first here
            sent[:] = outcome
        outcome[:] = sent

    def gather(values: list[Any], own: Any) -> None:
        values[:] = [own, 7]

    def make() -> int:
        made.append(1)
        return 5 // (2 - len(made))  # a second call raises

    monkeypatch.setattr(dist, "broadcast_object_list", broadcast)
    monkeypatch.setattr(dist, "all_gather_object", gather)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor.mul_(3))
    both = Ranks(0, 2), Ranks(1, 2)

    assert [ranks.first(make) for ranks in both] == [5, 5]
    assert len(made) == 1
    sent.clear()
    for ranks in both:
        with pytest.raises(ZeroDivisionError):
            ranks.first(make)
    assert len(made) == 2
    assert both[0].gather(5) == [5, 7]
    assert both[0].sum(torch.ones(2)).tolist() == [3.0, 3.0]


def test_processes_of_torchrun_join_and_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []
    launched, joined = [False], [False]
    monkeypatch.setattr(dist, "is_torchelastic_launched", lambda: launched[0])
    monkeypatch.setattr(dist, "is_initialized", lambda: joined[0])
    monkeypatch.setattr(dist, "init_process_group", lambda name, **_: done.append(name))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: done.append("left"))
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", done.append)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "3")

    assert (join("cpu"), is_first()) == (Ranks(), True)  # of another launcher
    leave()
    assert done == []
    launched[0] = True
    assert (join("cpu"), join("cuda"), is_first()) == (*[Ranks(1, 2)] * 2, False)
    assert done == ["gloo", 3, "nccl"]
    joined[0] = True
    assert join("cpu") == Ranks(1, 2)
    leave()
    assert done == ["gloo", 3, "nccl", "left"]
    monkeypatch.setenv("RANK", "0")
    assert is_first()


ALONE_WITHIN_TORCHRUN = """
import os
import torch
from coordrl.ranks import Ranks, join, leave

def threads():
    names = [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
    return sum("gloo" in name for name in names)

assert join("cpu") == Ranks(0, 1)
torch.optim.SGD([torch.zeros(1)])
print(threads() > 0)
leave()
print(threads())
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="there is no /proc")
def test_nothing_of_the_ranks_goes_on_behind_leave() -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    torchrun = {"TORCHELASTIC_RUN_ID": "1", "RANK": "0", "WORLD_SIZE": "1"}
    torchrun |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    done = subprocess.run(
        [sys.executable, "-c", ALONE_WITHIN_TORCHRUN],
        env=os.environ | torchrun, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "True\n0\n"), done.stderr


def test_the_other_ranks_wait_for_an_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[datetime.timedelta] = []
    monkeypatch.setattr(dist, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(dist, "init_process_group", lambda _, timeout: waits.append(timeout))
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    join("cpu")
    assert waits == [datetime.timedelta(hours=2)]
