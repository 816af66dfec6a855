"""The emulator of a GPU, without one: its kernels run on the CPU, beside the CPU's own emulator.

``shim/`` runs kernels.cu as C++: blocks one after the other, threads that meet at barriers. It
can't show how fast the kernels are, nor what a compiler for GPUs makes of them.
"""

import contextlib
import ctypes
import dataclasses
import importlib
import itertools
import re
import struct
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from coordrl import envs
from coordrl.config import AtariSettings, RunSettings, TrainingSettings
from coordrl.device_algorithms import make_device_model
from coordrl.emulator import (
    GAMES,
    Autoreset,
    Emulator,
    RomError,
    Step,
    compiled,
    load_rom,
    nvrtc,
    states,
)
from coordrl.emulator.device import DeviceEmulator, Occupancy, _Branches, _filling
from coordrl.emulator.lockstep import Tally, compare_devices
from coordrl.emulator.settings import native_settings
from coordrl.envs import vector_env
from coordrl.sb3_envs import make_sb3_env
from coordrl.training.checkpoint import read_checkpoint, write_checkpoint

SHIM = Path(__file__).parent / "shim"
# Short episodes, which end in the last frame of a step: what they show then is the hardest to tell.
SHORT = AtariSettings(max_frames_per_episode=92, noop_max=5)


class ShimKernels:
    """Launches the kernels of a library."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def launch(
        self, name: str, blocks: int, threads: int, *arguments: bytes, spare_bytes: int = 0
    ) -> None:
        if name == "show_observations":  # as many threads as there are share a picture
            threads = 3
        buffers = [ctypes.create_string_buffer(argument, len(argument)) for argument in arguments]
        addresses = (ctypes.c_void_p * len(buffers))(*map(ctypes.addressof, buffers))
        assert self._library.launch_kernel(name.encode(), blocks, threads, addresses) == 0


MakeShim = Callable[[Sequence[str], torch.device], list[ShimKernels]]


def compile_shim(folder: Path, macros: Mapping[str, str]) -> MakeShim:
    """Compile kernels.cu and load it."""
    for name, text in nvrtc.sources().items():
        (folder / name).write_text(text)
    library = folder / "kernels.so"
    command = ["g++", "-std=c++17", "-O1", "-fPIC", "-shared", "-ffp-contract=off"]
    command += ["-Wall", "-Wextra", "-Werror", f"-I{SHIM}", f"-I{folder}"]
    # What is known beforehand need not be looked at.
    command += ["-Wno-unused-parameter", *(f"-D{name}={value}" for name, value in macros.items())]
    command += ["-o", str(library), str(SHIM / "kernels_on_cpu.cpp")]
    subprocess.run(command, check=True)
    loaded = ctypes.CDLL(str(library))
    return lambda games, device: [ShimKernels(loaded) for _ in games]


@pytest.fixture(scope="session")
def make_shim(tmp_path_factory: pytest.TempPathFactory) -> MakeShim:
    """Return kernels for all games, compiled once."""
    return compile_shim(tmp_path_factory.mktemp("shim"), {})


# Cartridges of every kind: plain, sliced, with RAM, with a chip, without hot spots, banked; PAL;
# resets that depend on the past in few ways or many, keep some of its RAM, or choose at random;
# frames without end.
KINDS = ("pong", "montezuma_revenge", "elevator_action", "pitfall2", "robotank", "crossbow",
         "adventure", "surround", "tic_tac_toe_3d", "seaquest", "qbert", "time_pilot",
         "yars_revenge")  # fmt: skip


@pytest.mark.parametrize("game", KINDS)
def test_the_kernels_play_as_the_cpu_does(game: str, make_shim: MakeShim) -> None:
    tally = Tally()

    found = compare_devices(
        game, SHORT, steps=25, num_envs=33, device="cpu", make_kernels=make_shim, tally=tally
    )

    assert found is None, str(found)
    assert tally.games_over >= 33


# A game's first frames after few idle ones may not be whole; a copy has no pictures to go with it.
@pytest.mark.parametrize(
    ("game", "idle", "kinds", "copied"),
    [
        ("pong", 2, 1, 2),
        ("seaquest", 2, 1, 2),
        ("qbert", 6, 1, 2),
        ("time_pilot", 2, 2, 2),  # reads a byte that is 1 when the game is loaded, later 2
        # After 15 idle frames, a count of frames that is kept decides what happens.
        pytest.param("surround", 17, 5, 15, marks=pytest.mark.slow),
    ],
)
def test_beginnings_are_copied_if_they_depend_on_little_of_the_past(
    game: str, idle: int, kinds: int, copied: int
) -> None:
    tables = tables_of(game, AtariSettings(noop_max=idle))

    assert (tables.idle_counts, tables.num_kinds) == (idle, kinds)
    assert tables.copied_beginnings == 75 * kinds * copied


def test_no_beginning_is_kept_of_a_game_whose_past_matters_too_much() -> None:
    tables = tables_of("sir_lancelot", AtariSettings())

    assert (tables.idle_counts, tables.copied_beginnings) == (0, 0)


def tables_of(game: str, settings: AtariSettings) -> Any:
    native = native_settings(GAMES[game], settings, "same_step")
    return compiled.native().DeviceTables(native, load_rom(game), 2)


def reads(tables: Any) -> tuple[list[int], list[list[int]]]:
    """Return which bytes of RAM beginnings read, and the values after which they are copied."""
    content = tables.pasts()
    num_asked, num_keys, _ = struct.unpack_from("3i", content)
    asked = list(content[12 : 12 + num_asked])
    return asked, [list(content[16 + 4 * i :][:num_asked]) for i in range(num_keys)]


@pytest.mark.parametrize(
    ("game", "settings", "rounds"),
    [
        ("surround", AtariSettings(noop_max=20), 2),
        ("time_pilot", AtariSettings(noop_max=3), 2),
        *(
            pytest.param(game, AtariSettings(noop_max=idle), 20, marks=pytest.mark.slow)
            for game in ("seaquest", "venture", "crossbow", "pooyan", "kung_fu_master", "surround",
                         "ice_hockey", "entombed", "space_war", "time_pilot", "yars_revenge")
            for idle in (1, 30)
        ),
    ],
)  # fmt: skip
def test_beginnings_after_any_past_are_those_that_the_cpu_plays(
    game: str, settings: AtariSettings, rounds: int, make_shim: MakeShim
) -> None:
    num_envs = 128
    on_cpu = Emulator(game, num_envs, settings)
    on_device = DeviceEmulator(game, num_envs, settings, device="cpu", make_kernels=make_shim)
    on_cpu.reset(seed=0)
    key, tables = on_cpu._state_key(), on_device._groups[0]._tables
    asked, keys = reads(tables)
    draws = np.random.default_rng(0)
    for _ in range(rounds):
        pasts = []
        for i, state in enumerate(on_cpu.save()):
            content = bytearray(states.unpack(key, state, largest=1 << 20))
            ram = draws.integers(256, size=128)
            ram[asked] = keys[i % len(keys)] if i % 8 else ram[asked]
            content[tables.ram_offset : tables.ram_offset + 128] = bytes(ram.tolist())
            pasts.append(states.pack(key, bytes(content)))
        on_cpu.restore(pasts)
        on_device.restore(pasts)

        assert np.array_equal(on_cpu.reset().obs, on_device.reset().obs)
        assert on_device.save() == on_cpu.save()


def test_copies_are_of_the_kind_of_past(make_shim: MakeShim) -> None:
    settings = AtariSettings(noop_max=1, stack_size=1)
    emulator = DeviceEmulator("time_pilot", 3, settings, device="cpu", make_kernels=make_shim)
    emulator.reset(seed=0)
    ([asked], keys) = reads(emulator._groups[0]._tables)
    planes = emulator._groups[0]._shared[6].view(2, 75, 84, 84)
    planes[0], planes[1] = 1, 2
    at = emulator._groups[0]._tables.ram_offset + asked
    emulator._groups[0]._environments[:, at] = torch.tensor([2, 1, 3], dtype=torch.uint8)

    obs = emulator.reset().obs.numpy()

    assert keys == [[2], [1]]
    assert [np.unique(obs[i]).tolist() for i in range(2)] == [[1], [2]]
    assert len(np.unique(obs[2])) > 2, "this past is not known: the game is played"


@pytest.mark.slow
def test_beginnings_of_as_many_games_are_copied_as_readme_says() -> None:
    copied: dict[str, set[str]] = defaultdict(set)
    for name in GAMES:
        tables = tables_of(name, AtariSettings())
        if tables.idle_counts == 0:
            copied["never"].add(name)
        elif tables.copied_beginnings < 0.85 * 75 * tables.num_kinds * 30:
            copied["with few idle frames"].add(name)
        else:
            copied["after some pasts" if reads(tables)[0] else "always"].add(name)

    assert len(copied.pop("always")) == 93
    assert copied == {
        "after some pasts": {
            *("entombed", "ice_hockey", "kung_fu_master", "space_war", "time_pilot")
        },
        "with few idle frames": {"surround", "yars_revenge"},
        "never": {"elevator_action", "hangman", "haunted_house", "sir_lancelot"},
    }


@pytest.mark.slow
def test_other_beginnings_read_no_ram_that_the_game_before_has_left(tmp_path: Path) -> None:
    (tmp_path / "games.hpp").write_text(nvrtc.sources()["games.hpp"])
    program = tmp_path / "past_ram"
    command = ["g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"]
    command += [f"-I{Path(nvrtc.__file__).parent}", f"-I{tmp_path}"]
    subprocess.run([*command, "-o", program, SHIM.parent / "past_ram.cpp"], check=True)

    def reads_of(number: int, name: str) -> set[str]:
        rom = tmp_path / name
        rom.write_bytes(load_rom(name))
        found = set[str]()
        for mode in GAMES[name].modes:
            every = "1" if mode == GAMES[name].default_mode else "25"
            arguments = [str(program), str(number), str(mode), str(rom), every]
            found.update(subprocess.check_output(arguments, text=True).split())
        return found

    with ThreadPoolExecutor(2) as threads:
        found = dict(zip(GAMES, threads.map(reads_of, itertools.count(), GAMES), strict=True))

    assert len(found) == 104
    assert {name for name, addresses in found.items() if addresses} == {
        *("entombed", "hangman", "haunted_house", "ice_hockey", "kung_fu_master", "sir_lancelot"),
        *("space_war", "surround", "time_pilot", "yars_revenge"),
    }
    assert found["time_pilot"] == {"80"}


@pytest.mark.slow
def test_idle_frames_are_played_where_observations_of_them_would_fill_the_memory() -> None:
    for size, idle in (((84, 84), 30), ((210, 160), 0)):  # of five kinds: 0.3 and 1.2 GB
        tables = tables_of("surround", AtariSettings(observation="rgb", screen_size=size))

        assert (tables.num_kinds, tables.idle_counts) == (5, idle)
        assert len(tables.planes()) == 5 * 75 * idle * 3 * size[0] * size[1]


@pytest.mark.slow
@pytest.mark.parametrize("game", ["pong", "pitfall2", "montezuma_revenge", "elevator_action"])
def test_kernels_that_know_their_game_play_as_the_cpu_does(game: str, tmp_path: Path) -> None:
    # As nvrtc.py compiles them; a name of its own, or the library of the game before is loaded.
    own = tmp_path / game
    own.mkdir()
    make_kernels = compile_shim(own, nvrtc.defines(game))

    found = compare_devices(
        game, SHORT, steps=100, num_envs=33, device="cpu", make_kernels=make_kernels
    )

    assert found is None, str(found)


@pytest.mark.parametrize(
    ("settings", "autoreset"),
    [
        ({"observation": "rgb", "screen_size": (63, 48)}, "same_step"),
        ({"observation": "ram"}, "same_step"),
        ({"screen_size": (105, 80)}, "next_step"),
        ({"screen_size": (210, 160), "stack_size": 1, "frame_skip": 2}, "disabled"),
        ({"max_frames_per_episode": 14, "noop_max": 3}, "disabled"),
        ({"life_loss": "reset", "max_frames_per_episode": 400}, "disabled"),
        ({"frame_skip": 1, "max_pool": False}, "next_step"),
        ({"repeat_action_probability": 0.25, "life_loss": "reset"}, "same_step"),
        ({"frame_skip": 3, "noop_max": 0, "fire_reset": False, "clip_reward": False}, "same_step"),
        ({"noop_max": 70, "stack_size": 2}, "same_step"),
        ({"max_frames_per_episode": 4}, "same_step"),
    ],
)
def test_every_setting_is_that_of_the_cpu(
    settings: dict[str, Any], autoreset: Autoreset, make_shim: MakeShim
) -> None:
    changed = dataclasses.replace(SHORT, **{"max_frames_per_episode": 50, **settings})

    found = compare_devices(
        "breakout", changed, steps=40, num_envs=8, autoreset=autoreset, device="cpu",
        make_kernels=make_shim,
    )  # fmt: skip

    assert found is None, str(found)


# These begin in frames that are not whole, so in an album, which is closed a few steps later.
@pytest.mark.parametrize("game", ["qbert", "amidar", "trondead"])
@pytest.mark.parametrize("observation", ["gray", "rgb", "ram"])
def test_an_episode_may_end_in_the_step_behind_an_album(
    game: str, observation: Literal["gray", "rgb", "ram"], make_shim: MakeShim
) -> None:
    for frames in (8, 12, 24):
        settings = AtariSettings(max_frames_per_episode=frames, observation=observation)
        for autoreset in ("same_step", "next_step"):
            found = compare_devices(
                game, settings, steps=20, num_envs=4, autoreset=autoreset, device="cpu",
                make_kernels=make_shim, compare_states_every=1,
            )  # fmt: skip
            assert found is None, str(found)


def test_games_that_are_played_to_their_end_are_those_of_the_cpu(make_shim: MakeShim) -> None:
    tally = Tally()

    found = compare_devices(
        "breakout", AtariSettings(), steps=220, num_envs=12, device="cpu", make_kernels=make_shim,
        compare_states_every=100, tally=tally,
    )  # fmt: skip

    assert found is None, str(found)
    assert min(tally.rewards, tally.life_losses, tally.games_over) > 0


def test_a_difference_is_found(make_shim: MakeShim) -> None:
    class Forgetful(ShimKernels):
        def launch(
            self, name: str, blocks: int, threads: int, *arguments: bytes, spare_bytes: int = 0
        ) -> None:
            if name == "show_observations":
                super().launch(name, blocks - 1, threads, *arguments)
            else:
                super().launch(name, blocks, threads, *arguments)

    found = compare_devices(
        "pong", SHORT, steps=1, num_envs=3, device="cpu",
        make_kernels=lambda *what: [Forgetful(made._library) for made in make_shim(*what)],
    )  # fmt: skip

    assert found is not None
    assert found.component.startswith("obs at (2, 3, ")


@pytest.mark.parametrize("game", ["breakout", "tic_tac_toe_3d"])
def test_a_state_goes_from_one_processor_to_the_other(game: str, make_shim: MakeShim) -> None:
    ours = Emulator(game, 4, SHORT)
    theirs = DeviceEmulator(game, 4, SHORT, device="cpu", make_kernels=make_shim)
    rng = np.random.default_rng(0)

    def choose() -> Any:
        return rng.integers(len(ours.actions), size=4)

    ours.reset(seed=3)
    for _ in range(7):
        ours.step(choose())
    theirs.restore(ours.save())
    for _ in range(20):
        actions = choose()
        expected, step = ours.step(actions), theirs.step(torch.from_numpy(actions))
        assert np.array_equal(step.obs.numpy(), expected.obs)
        assert np.array_equal(step.episode_return.numpy(), expected.episode_return)
    assert theirs.save() == ours.save()
    assert Emulator(game, 4, SHORT).restore(theirs.save()).obs.tolist() == step.obs.tolist()


def test_a_state_that_is_none_is_refused_and_changes_nothing(make_shim: MakeShim) -> None:
    theirs = DeviceEmulator("pong", 2, SHORT, device="cpu", make_kernels=make_shim)
    theirs.reset(seed=0)
    saved = theirs.save()

    with pytest.raises(ValueError, match="checksum does not match"):
        theirs.restore([saved[0], saved[1][:-1] + b"?"])
    with pytest.raises(ValueError, match="as many states, got 1"):
        theirs.restore(saved[:1])
    with pytest.raises(ValueError, match="saved with game='breakout'"):
        theirs.restore([_state_of("breakout")] * 2)

    assert theirs.save() == saved


def _state_of(game: str) -> bytes:
    emulator = Emulator(game, 1, SHORT)
    emulator.reset(seed=0)
    return emulator.save()[0]


@pytest.mark.parametrize(("threads", "blocks"), [(1, 11), (5, 3), (64, 1)])
def test_games_do_not_depend_on_how_they_are_spread(
    threads: int, blocks: int, make_shim: MakeShim
) -> None:
    launches = set()

    class Watched(ShimKernels):
        def launch(
            self, name: str, blocks: int, threads: int, *arguments: bytes, spare_bytes: int = 0
        ) -> None:
            if name == "play_environments":
                launches.add((blocks, threads, spare_bytes))
            super().launch(name, blocks, threads, *arguments, spare_bytes=spare_bytes)

    spread = DeviceEmulator(
        "pong", 11, SHORT, device="cpu", occupancy=Occupancy(threads, spare_bytes=1 << 10),
        make_kernels=lambda *what: [Watched(made._library) for made in make_shim(*what)],
    )  # fmt: skip
    ours = Emulator("pong", 11, SHORT)
    rng = np.random.default_rng(0)

    spread.reset(seed=1)
    ours.reset(seed=1)
    for _ in range(5):
        actions = rng.integers(6, size=11)
        assert np.array_equal(spread.step(torch.from_numpy(actions)).obs, ours.step(actions).obs)

    assert spread.save() == ours.save()
    assert launches == {(blocks, threads, 1 << 10)}


def test_each_multiprocessor_of_a_gpu_has_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    spread = [_filling(count, torch.device("cuda:0")).threads for count in (1, 4096, 10**6)]
    assert spread == [1, 32, 64]
    assert _filling(4096, torch.device("cpu")) == Occupancy()


def test_games_that_are_played_at_once_fill_a_gpu_together(
    make_shim: MakeShim, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def filling(num_envs: int, device: torch.device) -> Occupancy:
        asked.append((num_envs, device.type))
        return Occupancy()

    monkeypatch.setattr("coordrl.emulator.device._filling", filling)
    DeviceEmulator(["pong", "air_raid"], 6, SHORT, device="cpu", make_kernels=make_shim)
    assert asked == [(6, "cpu")]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"threads": 0}, "threads must be between 1 and 64, got 0"),
        ({"threads": 65}, "threads must be between 1 and 64, got 65"),
        ({"spare_bytes": -1}, "spare_bytes must be at least 0, got -1"),
    ],
)
def test_a_spread_that_no_gpu_has_is_refused(wrong: dict[str, int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Occupancy(**wrong)


def test_games_in_one_batch_are_those_in_batches_of_their_own(make_shim: MakeShim) -> None:
    settings = dataclasses.replace(SHORT, full_action_space=True)
    games = ("pong", "pacman")
    both = DeviceEmulator(games, 6, settings, device="cpu", make_kernels=make_shim)
    alone = [Emulator(game, 3, settings) for game in games]
    rng = np.random.default_rng(0)

    both.reset(seed=[5, 6, 7, 1, 2, 3])
    alone[0].reset(seed=5)
    alone[1].reset(seed=1)
    for _ in range(10):
        actions = rng.integers(18, size=6)
        step = both.step(torch.from_numpy(actions))
        steps: list[Step] = [e.step(a) for e, a in zip(alone, np.split(actions, 2), strict=True)]
        for field in ("obs", "rewards", "lives", "frame_number"):
            expected = np.concatenate([getattr(s, field) for s in steps])
            assert np.array_equal(getattr(step, field).numpy(), expected), field


def test_games_of_one_batch_run_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    @dataclasses.dataclass
    class Stream:
        name: str

        def wait_stream(self, other: "Stream") -> None:
            done.append(f"{self.name} waits for {other.name}")

    @contextlib.contextmanager
    def current(stream: Stream) -> Iterator[None]:
        done.append(stream.name)
        yield

    names = iter(("a", "b"))
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: Stream(next(names)))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream("torch's"))
    monkeypatch.setattr(torch.cuda, "stream", current)
    branches = _Branches(2, torch.device("cuda"))

    with branches.leave_and_join(), branches[1]:
        done.append("work")

    assert done == [
        *("a waits for torch's", "b waits for torch's", "b", "work"),
        *("torch's waits for a", "torch's waits for b"),
    ]
    for alone in (_Branches(1, torch.device("cuda")), _Branches(2, torch.device("cpu"))):
        done.clear()
        with alone.leave_and_join(), alone[0]:
            done.append("work")
        assert done == ["work"]


def test_every_game_of_a_batch_is_begun_before_one_is_waited_for() -> None:
    launched: list[str] = []

    class Recorded(ShimKernels):
        def launch(self, name: str, *_: Any, **__: Any) -> None:
            launched.append(name)

    both = DeviceEmulator(
        ("pong", "breakout"), 2, dataclasses.replace(SHORT, full_action_space=True), device="cpu",
        make_kernels=lambda games, _: [Recorded(ctypes.CDLL(None)) for _ in games],
    )  # fmt: skip
    both.reset(seed=0)
    both.step(torch.tensor([0, 0]))

    assert launched == [*["play_environments"] * 2, *["show_observations"] * 2] * 2


def test_a_partial_reset_leaves_the_others_alone(make_shim: MakeShim) -> None:
    theirs = DeviceEmulator("breakout", 3, SHORT, device="cpu", make_kernels=make_shim)
    ours = Emulator("breakout", 3, SHORT)
    theirs.reset(seed=0)
    ours.reset(seed=0)
    theirs.step(torch.tensor([1, 1, 1]))
    ours.step([1, 1, 1])
    mask = np.array([False, True, False])

    step, expected = theirs.reset(mask=mask, seed=[9]), ours.reset(mask=mask, seed=[9])

    assert np.array_equal(step.obs.numpy(), expected.obs)
    assert theirs.save() == ours.save()


def test_a_step_allocates_no_results_of_its_own(make_shim: MakeShim) -> None:
    theirs = DeviceEmulator("pong", 2, SHORT, device="cpu", make_kernels=make_shim)
    first = theirs.reset(seed=0)

    assert theirs.step(torch.tensor([0, 0])) is first


def test_an_environment_takes_as_much_memory_as_readme_says(make_shim: MakeShim) -> None:
    theirs = DeviceEmulator("pong", 2, SHORT, device="cpu", make_kernels=make_shim)
    (group,) = theirs._groups
    observations = [theirs._latest.obs, theirs._latest.final_obs]
    results = [getattr(theirs._latest, field.name) for field in dataclasses.fields(theirs._latest)]
    own = [group._environments, group._notes, group._pictures]

    def each(tensors: list[torch.Tensor]) -> int:
        return sum(tensor.nbytes for tensor in tensors) // 2

    assert each(results + own) == 231_240
    assert each(observations) == 56_448
    assert each([group._pictures]) == 168_000


def test_an_action_that_does_not_exist_is_the_nearest(make_shim: MakeShim) -> None:
    batches = [DeviceEmulator("pong", 2, SHORT, device="cpu", make_kernels=make_shim)
               for _ in range(2)]  # fmt: skip
    for batch, actions in zip(batches, ([-7, 99], [0, 5]), strict=True):
        batch.reset(seed=0)
        batch.step(torch.tensor(actions))

    assert batches[0].save() == batches[1].save()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"games": ("pong", "breakout")}, r"same number of actions, got \[4, 6\]"),
        ({"games": ("pong", "pacman"), "num_envs": 3}, "multiple of the 2 games, got 3"),
        ({"games": "pongg"}, "did you mean 'pong'"),
        ({"games": ()}, "multiple of the 0 games, got 2"),
        ({"games": "pong", "num_envs": 0}, "num_envs must be between 1 and 2147483647, got 0"),
        (
            {
                "games": ("pacman", "pong"),
                "settings": AtariSettings(screen_size=(240, 160), full_action_space=True),
            },
            "screen_size must not exceed the 210 x 160 pixels of pong",
        ),
        ({"games": "pong", "settings": AtariSettings(mode=99)}, "pong has no mode 99"),
        ({"games": "pong", "rom_path": "missing"}, "missing"),
    ],
)
def test_a_wrong_batch_is_refused_before_kernels_are_compiled(
    arguments: dict[str, Any], match: str
) -> None:
    with pytest.raises((ValueError, RomError), match=match):
        DeviceEmulator(
            **{"num_envs": 2, "settings": SHORT, **arguments}, device="cpu",
            make_kernels=lambda *_: pytest.fail("compiled"),
        )  # fmt: skip


def test_wrong_actions_are_refused(make_shim: MakeShim) -> None:
    theirs = DeviceEmulator("pong", 2, SHORT, device="cpu", make_kernels=make_shim)
    with pytest.raises(ValueError, match="call reset before the first step"):
        theirs.step(torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="call reset before saving"):
        theirs.save()
    with pytest.raises(ValueError, match="the first reset must be of all"):
        theirs.reset(mask=np.array([True, False]))
    theirs.reset(seed=0)
    with pytest.raises(ValueError, match=r"shape \(2,\) on cpu, got \(3,\) on cpu"):
        theirs.step(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"must be int64, got torch\.int32"):
        theirs.step(torch.zeros(2, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"booleans of shape \(2,\), got int64 of shape \(2,\)"):
        theirs.reset(mask=np.array([1, 0]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_sentence_says_so() -> None:
    with pytest.raises(nvrtc.CudaError, match=r"^device='cuda' needs .*[^.]$"):
        DeviceEmulator("pong", 2)


# AtariVectorEnv. ----------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, make_shim: MakeShim) -> None:
    """Let the shim stand for device="cuda"."""

    def on_cpu(*arguments: Any, device: torch.device, **options: Any) -> DeviceEmulator:
        assert device.type == "cuda"
        return DeviceEmulator(*arguments, **options, device="cpu", make_kernels=make_shim)

    monkeypatch.setattr(vector_env, "DeviceEmulator", on_cpu)


def both(game: str, num_envs: int, **options: Any) -> tuple[envs.AtariVectorEnv, ...]:
    return tuple(
        envs.AtariVectorEnv(game, num_envs, device=device, **options) for device in ("cpu", "cuda")
    )


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_the_environment_of_a_gpu_says_what_that_of_the_cpu_says(mode: AutoresetMode) -> None:
    settings = AtariSettings(
        max_frames_per_episode=400, noop_max=3, clip_reward=False,
        fire_after_life_loss=mode is AutoresetMode.SAME_STEP,  # or NOOP between lives would be FIRE
    )  # fmt: skip
    cpu, cuda = both("Breakout", 8, settings=settings, autoreset_mode=mode)
    assert np.array_equal(cuda.reset(seed=4)[0].numpy(), cpu.reset(seed=4)[0])
    rng = np.random.default_rng(0)
    lives_lost = games_ended = 0
    for _ in range(120):
        actions = rng.integers(4, size=8)
        obs, rewards, terminated, truncated, info = cpu.step(actions)
        *theirs, their_info = cuda.step(torch.from_numpy(actions))

        for mine, other in zip((obs, rewards, terminated, truncated), theirs, strict=True):
            assert np.array_equal(other.numpy(), mine)
        for name in ("lives", "frame_number", "episode_frame_number"):
            assert np.array_equal(their_info[name].numpy(), info[name]), name
        assert np.array_equal(cuda.lives.numpy(), cpu.lives)
        assert np.array_equal(cpu.is_over, terminated | truncated)
        assert np.array_equal(cuda.is_over.numpy(), cpu.is_over)
        ended = info.get("_game", np.zeros(8, np.bool_))
        assert np.array_equal(their_info["_game"].numpy(), ended)
        for name, values in their_info["game"].items():
            expected = info["game"][name] if ended.any() else np.zeros(8)
            assert np.array_equal(values.numpy(), expected), name
        if mode is AutoresetMode.SAME_STEP:
            for i in np.flatnonzero(terminated | truncated):
                assert np.array_equal(their_info["final_obs"][i].numpy(), info["final_obs"][i])
                for name in ("frame_number", "episode_frame_number"):
                    assert their_info["final_info"][name][i] == info["final_info"][name][i]
        games_ended += ended.sum()
        lives_lost += (terminated & ~ended).sum()
    assert min(games_ended, lives_lost) > 0


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_games_on_a_gpu_that_are_reset_at_any_time_count_as_those_of_a_cpu(
    mode: AutoresetMode,
) -> None:
    settings = AtariSettings(max_frames_per_episode=120, noop_max=3)
    cpu, cuda = both("Breakout", 4, settings=settings, autoreset_mode=mode)
    for games in (cpu, cuda):
        games.reset(seed=0)
    rng = np.random.default_rng(0)
    resets = ends = 0
    for step in range(80):
        actions = rng.integers(4, size=4)
        actions[:2] = 1  # who only serves loses lives
        *_, info = cpu.step(actions)
        *_, theirs = cuda.step(torch.from_numpy(actions))
        for name, values in theirs["game"].items():
            expected = info["game"][name] if "game" in info else np.zeros(4)
            assert np.array_equal(values.numpy(), expected), name
        ends += int(theirs["_game"].sum())

        mask = cpu.is_over & (rng.random(4) < 0.5)  # others go on by themselves
        mask[step % 4] |= step % 10 == 9
        if mask.any():
            resets += 1
            obs, info = cpu.reset(options={"reset_mask": mask})
            their_obs, theirs = cuda.reset(options={"reset_mask": mask})
            assert np.array_equal(their_obs.numpy(), obs)
            assert np.array_equal(theirs["frame_number"].numpy(), info["frame_number"])
        assert np.array_equal(cuda.is_over.numpy(), cpu.is_over)
        assert np.array_equal(cuda.lives.numpy(), cpu.lives)
    assert min(resets, ends) > 1


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_games_that_end_while_idle_count_alike(mode: AutoresetMode) -> None:
    settings = AtariSettings(mode=3, screen_size=(20, 20))
    cpu, cuda = both("demon_attack", 4, settings=settings, autoreset_mode=mode)
    cpu.reset(seed=0)
    cuda.reset(seed=0)
    ends = 0
    for _ in range(8):
        *_, info = cpu.step([0] * 4)
        *_, theirs = cuda.step(torch.zeros(4, dtype=torch.int64))
        for name, values in theirs["game"].items():
            assert np.array_equal(values.numpy(), info["game"][name] if "game" in info else [0] * 4)
        ends += int(theirs["_game"].sum())
    assert ends > 4


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
@pytest.mark.parametrize("actions", [torch.tensor(2), torch.tensor([2])])
def test_one_action_is_not_played_in_all_games(actions: torch.Tensor, mode: AutoresetMode) -> None:
    _, cuda = both("Breakout", 3, autoreset_mode=mode)
    cuda.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions must have shape \(3,\) on cpu, got"):
        cuda.step(actions)


@pytest.mark.usefixtures("gpu")
def test_a_mask_on_a_gpu_may_lie_in_any_order() -> None:
    mask = np.array([True, False, False])[::-1]
    _, cuda = both("Breakout", 3)
    cuda.reset(seed=0)
    for _ in range(9):
        *_, info = cuda.step(torch.zeros(3, dtype=torch.int64))
    before = info["episode_frame_number"].clone()

    _, info = cuda.reset(options={"reset_mask": mask})

    begun = info["episode_frame_number"] < before
    assert begun.tolist() == [False, False, True]


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("life_loss", ["ignore", "reset"])
def test_a_game_on_a_gpu_that_nobody_resets_stays_over(life_loss: Any) -> None:
    settings = AtariSettings(life_loss=life_loss, max_frames_per_episode=400, noop_max=3)
    cuda = envs.AtariVectorEnv(
        "Breakout", 2, settings, device="cuda", autoreset_mode=AutoresetMode.DISABLED
    )
    cuda.reset(seed=0)
    actions = torch.tensor([0, 1])  # the first never serves; the second loses a ball
    for _ in range(101):
        obs, _, terminated, truncated, info = cuda.step(actions)
        if info["_game"].all():
            break
        actions[1] = 2
    over = [part.clone() for part in (obs, terminated, truncated, info["episode_frame_number"])]

    for _ in range(3):
        obs, rewards, terminated, truncated, info = cuda.step(actions)
        now = (obs, terminated, truncated, info["episode_frame_number"])
        assert all(torch.equal(part, before) for part, before in zip(now, over, strict=True))
        assert rewards.tolist() == [0, 0]
        assert info["_game"].tolist() == info["game"]["frames"].tolist() == [0, 0]

    _, info = cuda.reset(options={"reset_mask": np.array([True, False])})
    assert (info["lives"][0], info["episode_frame_number"][1]) == (5, over[3][1])
    _, _, terminated, truncated, _ = cuda.step(actions)
    assert (terminated | truncated).tolist() == [False, True]


@pytest.mark.usefixtures("gpu")
def test_the_adapter_gives_sb3_arrays_of_games_on_a_gpu() -> None:
    games = make_sb3_env("Breakout", 2, seed=0, device="cuda")
    games.reset()
    obs = games.step(np.array([1, 1]))[0]

    restored = games.restore(games.save())

    assert isinstance(restored, np.ndarray)
    np.testing.assert_array_equal(restored, obs)


@pytest.mark.usefixtures("gpu")
def test_sb3_is_told_of_games_on_a_gpu_what_it_is_told_of_those_on_a_cpu() -> None:
    cpu, cuda = (
        make_sb3_env("Breakout", 3, SHORT, seed=2, device=name) for name in ("cpu", "cuda")
    )
    cpu.reset()
    cuda.reset()
    rng = np.random.default_rng(0)
    ends = 0
    for _ in range(60):
        actions = rng.integers(4, size=3)
        told, told_of_cuda = cpu.step(actions)[3], cuda.step(actions)[3]
        for info in (*told, *told_of_cuda):
            ends += "episode" in info
            info.get("episode", {}).pop("t", None)  # seconds
        np.testing.assert_equal(told_of_cuda, told)
        assert cuda.reset_infos == cpu.reset_infos
    assert ends > 4


@pytest.mark.usefixtures("gpu")
def test_games_that_were_saved_on_a_gpu_go_on_on_a_cpu_and_back() -> None:
    cpu, cuda = both("Breakout", 3, settings=SHORT)
    cuda.reset(seed=0)
    obs = cuda.step(torch.tensor([1, 2, 3]))[0]

    assert np.array_equal(cpu.restore(cuda.save()), obs.numpy())
    cpu.step(np.array([1, 1, 1]))
    cuda.step(torch.tensor([1, 1, 1]))
    assert cpu.save() == cuda.save()
    for _ in range(30):
        cpu.step(np.array([1, 2, 3]))
    for _ in range(3):
        cuda.step(torch.tensor([3, 3, 3]))

    cuda.restore(cpu.save())

    assert cuda.save() == cpu.save()
    assert np.array_equal(cuda.step(torch.tensor([2, 2, 2]))[0].numpy(), cpu.step([2, 2, 2])[0])


@pytest.mark.usefixtures("gpu")
def test_games_of_a_gpu_are_staggered_as_those_of_a_cpu() -> None:
    cpu, cuda = (
        make_sb3_env("Breakout", 3, seed=2, stagger=7, device=device) for device in ("cpu", "cuda")
    )

    np.testing.assert_array_equal(cuda.reset(), cpu.reset())

    actions = torch.tensor([2, 3, 1])
    assert torch.equal(cuda.step_torch(actions).obs, cpu.step_torch(actions).obs)


@pytest.mark.usefixtures("gpu")
def test_several_games_share_a_batch_on_a_gpu_alone() -> None:
    settings = AtariSettings(full_action_space=True)
    cuda = envs.AtariVectorEnv(["Pong", "ALE/Pacman-v5"], 4, settings, device="cuda")

    obs, _ = cuda.reset(seed=0)

    assert cuda.games == ("pong", "pacman")
    assert np.array_equal(
        obs[:2].numpy(), envs.AtariVectorEnv("Pong", 2, settings).reset(seed=0)[0]
    )
    with pytest.raises(ValueError, match="several in one batch need device='cuda'"):
        envs.AtariVectorEnv(["Pong", "Pacman"], 4)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_gpu_renders_the_screens_of_a_cpu(mode: AutoresetMode) -> None:
    settings = AtariSettings(full_action_space=True, max_frames_per_episode=30)
    # Of different heights: one is of PAL television.
    names = ["pong", "air_raid"]
    cuda = envs.AtariVectorEnv(
        names, 4, settings, device="cuda", autoreset_mode=mode, render_mode="rgb_array"
    )
    cpus = [
        envs.AtariVectorEnv(name, 2, settings, autoreset_mode=mode, render_mode="rgb_array")
        for name in names
    ]
    cuda.reset(seed=[7, 8, 7, 8])
    for cpu in cpus:
        cpu.reset(seed=7)
    for action in (3, 4, 11, 2, 0, 1):
        cuda.step(torch.full((4,), action))
        before = cuda.save()
        drawn = cuda.render()
        for cpu in cpus:
            cpu.step([action] * 2)
        expected = [screen for cpu in cpus for screen in cpu.render()]
        assert [own.shape for own in drawn] == [own.shape for own in expected]
        assert all(map(np.array_equal, drawn, expected))
        assert cuda.save() == before


@pytest.mark.usefixtures("gpu")
def test_what_a_gpu_can_not_do_is_said() -> None:
    cuda = envs.AtariVectorEnv("Pong", 2, device="cuda")
    with pytest.raises(gymnasium.error.ResetNeeded, match="before the first step"):
        cuda.step(torch.zeros(2, dtype=torch.int64))
    with pytest.raises(gymnasium.error.ResetNeeded, match="before save"):
        cuda.save()
    with pytest.raises(ValueError, match="emulator='ale' plays on the CPU"):
        envs.AtariVectorEnv("Pong", 2, device="cuda", emulator="ale")


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("algo", ["ppo", "a2c", "dqn"])
def test_what_is_learned_from_games_on_a_gpu_is_what_is_learned_on_the_cpu(
    algo: Any, tmp_path: Path
) -> None:
    settings = TrainingSettings(
        run=RunSettings(algo=algo),
        env=AtariSettings(screen_size=(36, 40), max_frames_per_episode=60, noop_max=5),
        algorithm={
            "ppo": {"n_steps": 16, "batch_size": 16, "n_epochs": 2},
            "a2c": {"n_steps": 16},
            "dqn": {"buffer_size": 80, "learning_starts": 16, "batch_size": 8},
        }[algo],
        extractor={"specs": [[4, 8, 8], [4, 3, 1]], "features_dim": 8},
    )
    models: list[Any] = []
    for device in ("cpu", "cuda"):
        games = make_sb3_env("Breakout", 4, settings.env, seed=1, device=device)
        models.append(make_device_model(settings, games, seed=0))
        torch.manual_seed(0)
        models[-1].learn(128)

    [weights, theirs] = [model.policy.state_dict() for model in models]
    assert all(torch.equal(value, theirs[name]) for name, value in weights.items())
    [played, their_games] = [[(g["r"], g["l"]) for g in m.ep_info_buffer] for m in models]
    assert played == their_games != []

    # A checkpoint of the one goes on on the other.
    write_checkpoint(models[1], "", tmp_path)
    games = make_sb3_env("Breakout", 4, settings.env, device="cpu")
    other: Any = make_device_model(settings, games, seed=5)
    assert read_checkpoint(other, tmp_path).new_games is None
    for model in (models[1], other):
        torch.manual_seed(1)
        model.learn(64, reset_num_timesteps=False)
    for name, value in models[1].policy.state_dict().items():
        assert torch.equal(value, other.policy.state_dict()[name])


# The commands for a machine with a GPU. -----------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", ["benchmark.py cuda", "verify_emulator.py --device cuda"])
def test_a_command_without_a_gpu_says_so_and_ends_with_code_2(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, *arguments = command.split()
    name = script.removesuffix(".py")
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)

    assert importlib.import_module(name).main(arguments) == 2

    assert re.fullmatch(rf"{script}: device='cuda' needs .*\n", capsys.readouterr().err)


@pytest.mark.parametrize("game", ["qbert", "amidar", "trondead"])
def test_a_state_within_an_album_goes_to_a_gpu_and_back(game: str, make_shim: MakeShim) -> None:
    ours, back = Emulator(game, 3, SHORT), Emulator(game, 3, SHORT)
    theirs = DeviceEmulator(game, 3, SHORT, device="cpu", make_kernels=make_shim)
    theirs.reset(seed=9)
    ours.reset(seed=3)

    for step in range(6):
        saved = ours.save()
        expected, found = back.restore(saved), theirs.restore(saved)
        for field in ("obs", "lives", "frame_number", "episode_frame_number", "episode_length"):
            assert np.array_equal(getattr(found, field), getattr(expected, field)), (step, field)
        assert theirs.save() == saved
        actions = np.full(3, step % 3)
        found, expected = theirs.step(torch.from_numpy(actions)), ours.step(actions)
        assert np.array_equal(found.obs, expected.obs)
        assert theirs.save() == ours.save()


def test_what_was_shown_before_a_restore_is_not_shown_again(make_shim: MakeShim) -> None:
    settings = AtariSettings(max_frames_per_episode=40, noop_max=0)  # ends in a step's last frame
    ours = Emulator("breakout", 2, settings)
    theirs = DeviceEmulator("breakout", 2, settings, device="cpu", make_kernels=make_shim)
    ours.reset(seed=0)
    theirs.reset(seed=0)
    for _ in range(9):
        ours.step([2, 3])
        theirs.step(torch.tensor([3, 2]))

    theirs.restore(ours.save())
    expected, step = ours.step([2, 3]), theirs.step(torch.tensor([2, 3]))

    assert expected.ended.all()
    assert np.array_equal(step.final_obs, expected.final_obs)


def test_a_wrong_state_of_one_game_leaves_the_others_where_they_are(make_shim: MakeShim) -> None:
    settings = dataclasses.replace(SHORT, full_action_space=True)
    both = DeviceEmulator(("pong", "pacman"), 2, settings, device="cpu", make_kernels=make_shim)
    both.reset(seed=0)
    before = both.save()
    both.step(torch.tensor([2, 3]))
    saved = both.save()

    with pytest.raises(ValueError, match="checksum does not match"):
        both.restore([before[0], before[1][:-1] + b"?"])

    assert both.save() == saved


def test_actions_may_lie_in_any_order(make_shim: MakeShim) -> None:
    apart, together = (
        DeviceEmulator("pong", 2, SHORT, device="cpu", make_kernels=make_shim) for _ in range(2)
    )
    apart.reset(seed=0)
    together.reset(seed=0)

    apart.step(torch.tensor([[2, 0], [3, 0]])[:, 0])
    together.step(torch.tensor([2, 3]))

    assert apart.save() == together.save()


def test_actions_on_another_device_are_refused(make_shim: MakeShim) -> None:
    theirs = DeviceEmulator("pong", 2, SHORT, device="cpu", make_kernels=make_shim)
    theirs.reset(seed=0)
    with pytest.raises(ValueError, match=r"shape \(2,\) on cpu, got \(2,\) on meta"):
        theirs.step(torch.zeros(2, dtype=torch.int64, device="meta"))


def test_a_console_that_no_game_leads_to_is_refused(make_shim: MakeShim) -> None:
    theirs = DeviceEmulator("pong", 1, SHORT, device="cpu", make_kernels=make_shim)
    theirs.reset(seed=0)
    (saved,) = theirs.save()
    (group,) = theirs._groups
    content = states.unpack(group._key, saved, largest=10**7)
    for wrong in (b"\xff" * len(content), content + b"\0" * 10**7):
        with pytest.raises(ValueError, match="the saved environment is damaged"):
            theirs.restore([states.pack(group._key, wrong)])
    assert theirs.save() == [saved]


def test_ram_is_that_of_the_cpu_for_every_game_and_a_copy(make_shim: MakeShim) -> None:
    settings = dataclasses.replace(SHORT, full_action_space=True)
    games = ("pong", "pacman")
    both = DeviceEmulator(games, 4, settings, device="cpu", make_kernels=make_shim)
    alone = [Emulator(game, 2, settings) for game in games]
    both.reset(seed=[0, 1, 0, 1])
    for emulator in alone:
        emulator.reset(seed=0)

    ram = both.ram
    expected = np.concatenate([emulator.ram for emulator in alone])
    both.step(torch.tensor([2, 3, 4, 5]))

    assert np.array_equal(ram.numpy(), expected)
    assert not torch.equal(both.ram, ram)


def test_a_rom_of_ones_own_is_read(tmp_path: Path, make_shim: MakeShim) -> None:
    (tmp_path / "mine.bin").write_bytes(load_rom("breakout"))
    with pytest.raises(ValueError, match=r"mine.bin is not the ROM image of pong"):
        DeviceEmulator(
            "pong", 1, rom_path=tmp_path / "mine.bin", device="cpu", make_kernels=make_shim
        )


def test_games_of_one_batch_may_mean_other_actions_by_their_numbers(make_shim: MakeShim) -> None:
    both = DeviceEmulator(("breakout", "atlantis"), 2, SHORT, device="cpu", make_kernels=make_shim)
    assert both.action_meanings == Emulator("breakout", 1).action_meanings


def test_a_mask_may_lie_in_any_order(make_shim: MakeShim) -> None:
    theirs = DeviceEmulator("breakout", 2, SHORT, device="cpu", make_kernels=make_shim)
    theirs.reset(seed=0)
    theirs.step(torch.tensor([0, 0]))
    begun = theirs.reset(mask=np.array([True, False])[::-1]).episode_length
    assert begun.tolist() == [1, 0]


@pytest.mark.usefixtures("gpu")
def test_a_game_without_noop_is_played_on_a_gpu() -> None:
    cpu, cuda = both("Backgammon", 1, autoreset_mode=AutoresetMode.NEXT_STEP)
    assert "NOOP" not in cuda.action_meanings
    assert np.array_equal(cuda.reset(seed=0)[0].numpy(), cpu.reset(seed=0)[0])
    assert np.array_equal(cuda.step([1])[0].numpy(), cpu.step([1])[0])


@pytest.mark.usefixtures("gpu")
def test_a_rom_of_ones_own_is_read_for_games_on_a_gpu(tmp_path: Path) -> None:
    (tmp_path / "mine.bin").write_bytes(load_rom("breakout"))
    with pytest.raises(ValueError, match=r"mine.bin is not the ROM image of pong"):
        envs.AtariVectorEnv("pong", 1, device="cuda", rom_path=tmp_path / "mine.bin")
