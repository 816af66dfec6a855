"""Lock-step comparisons find a difference that was put there, and name it."""

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from coordrl.config import AtariSettings
from coordrl.emulator import Console, Emulator, Step, lockstep

FAULTY_FROM = 20  # frame or step in which something is wrong first


class Liar(Console):
    """A console that tells something wrong about itself from frame 20 on."""

    lies_about = ""
    acts = 0

    def act(self, action: int) -> int:
        self.acts += 1
        return super().act(action) + int(self._lies("reward"))

    def _lies(self, name: str) -> bool:
        return self.lies_about == name and self.acts > FAULTY_FROM

    @property
    def ram(self) -> NDArray[np.uint8]:
        ram = super().ram
        ram[7] ^= 0x40 * self._lies("ram")
        return ram

    @property
    def screen(self) -> NDArray[np.uint8]:
        screen = super().screen
        screen[100, 50:60] ^= 2 * self._lies("screen")
        return screen

    @property
    def lives(self) -> int:
        return super().lives + self._lies("lives")

    @property
    def game_over(self) -> bool:
        return super().game_over or self._lies("game_over")

    @property
    def frame_number(self) -> int:
        return super().frame_number + self._lies("frame_number")

    @property
    def episode_frame_number(self) -> int:
        return super().episode_frame_number - self._lies("episode_frame_number")


@pytest.mark.parametrize(
    ("lies_about", "message"),
    [
        ("ram", r"RAM at \(7,\), the first of 1 bytes, is 0x[0-9a-f]{2}, not 0x[0-9a-f]{2}"),
        ("screen", r"screen at \(100, 50\), the first of 10 bytes, is 0x02, not 0x00"),
        ("reward", r"reward is 1, not 0"),
        ("lives", r"lives is 6, not 5"),
        ("game_over", r"game over is True, not False"),
        ("frame_number", r"frame_number is 22, not 21"),
        ("episode_frame_number", r"episode_frame_number is 20, not 21"),
    ],
)
def test_every_kind_of_difference_is_found_in_its_frame(
    lies_about: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Liar, "lies_about", lies_about)
    monkeypatch.setattr(lockstep, "Console", Liar)

    found = str(lockstep.compare_frames("breakout", frames=30, seed=4))

    assert found.startswith(f"breakout, frame {FAULTY_FROM} (seed 4, held actions, mode None")
    assert re.search(message, found), found


class Switched(Console):
    """A console whose difficulty switches somebody moves."""

    acts = 0

    def act(self, action: int) -> int:
        self.acts += 1
        if self.acts == FAULTY_FROM:
            self._player.set_difficulty(3)
        return super().act(action)


def test_a_difference_in_the_machine_is_told_with_its_registers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lockstep, "Console", Switched)

    found = str(lockstep.compare_frames("seaquest", frames=200, policy="random"))

    assert re.search(r"RAM at \(103,\).* registers: position M0 0x\w\w not 0x\w\w$", found), found


class LyingEmulator(Emulator):
    """Environments whose results are wrong in one element from step 20 on."""

    lies_about = ""
    steps = 0

    def step(self, actions: Any) -> Step:
        step = super().step(actions)
        self.steps += 1
        if not self.lies_about or self.steps <= FAULTY_FROM:
            return step
        wrong = getattr(step, self.lies_about).copy()
        if wrong.dtype == np.bool_:
            wrong[1] = not wrong[1]
        else:
            wrong[1, ...] += 1
        return dataclasses.replace(step, **{self.lies_about: wrong})


@pytest.mark.parametrize(
    "lies_about",
    [
        *("obs", "rewards", "terminated", "truncated", "lives", "frame_number"),
        *("episode_frame_number", "ended", "life_lost", "unclipped_rewards", "episode_return"),
        "episode_length",
    ],
)
def test_every_kind_of_difference_is_found_in_its_step(
    lies_about: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LyingEmulator, "lies_about", lies_about)
    monkeypatch.setattr(lockstep, "Emulator", LyingEmulator)
    settings = AtariSettings(life_loss="ignore", clip_reward=False)

    found = str(lockstep.compare_steps("breakout", settings, steps=30, num_envs=2))

    assert found.startswith(f"breakout, step {FAULTY_FROM} (seed 0, held actions, same_step")
    assert re.search(rf"\): {lies_about} at \(1[,)].* is \w+, not \w+$", found), found


@pytest.mark.parametrize("life_loss", ["ignore", "reset", "terminate"])
def test_an_end_that_is_wrong_is_found_when_the_next_episode_should_begin(
    life_loss: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LyingEmulator, "lies_about", "ended")
    monkeypatch.setattr(lockstep, "Emulator", LyingEmulator)
    settings = AtariSettings(life_loss=life_loss)

    found = str(
        lockstep.compare_steps("breakout", settings, steps=30, num_envs=2, autoreset="next_step")
    )

    assert found.startswith(f"breakout, step {FAULTY_FROM + 1} "), found
    assert ": ended, in the step before, at (1,), the first of 1, is True, not False" in found


def test_points_of_the_wrong_sign_are_found_where_ale_py_clips_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(LyingEmulator, "lies_about", "unclipped_rewards")
    monkeypatch.setattr(lockstep, "Emulator", LyingEmulator)

    found = str(lockstep.compare_steps("breakout", AtariSettings(), steps=30, num_envs=2))

    assert found.endswith(": the sign of unclipped_rewards at (1,), the first of 1, is 1, not 0")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda obs: obs[..., None], r"\(2, 4, 84, 84, 1\) of uint8, not \(2, 4, 84, 84\) of u"),
        (lambda obs: obs.astype(np.int64), r"\(2, 4, 84, 84\) of int64, not \(2, 4, 84, 84\) of u"),
    ],
)
def test_observations_of_another_shape_or_type_are_found(
    wrong: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Shaped(Emulator):
        def step(self, actions: Any) -> Step:
            step = super().step(actions)
            return dataclasses.replace(step, obs=wrong(step.obs))

    monkeypatch.setattr(lockstep, "Emulator", Shaped)

    found = str(lockstep.compare_steps("breakout", AtariSettings(), steps=3, num_envs=2))

    assert re.search(r"breakout, step 0 .*the shape and type of obs is " + message, found), found


def test_an_episode_that_ended_before_others_were_reset_begins_anew_behind_that() -> None:
    settings = AtariSettings(life_loss="ignore", max_frames_per_episode=100, noop_max=0)
    # All end in the 25th step, and some are reset between that and the next.
    assert not lockstep.compare_steps(
        "breakout", settings, steps=50, num_envs=2, autoreset="next_step"
    )


def test_what_is_counted_is_what_ale_py_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = AtariSettings(life_loss="ignore", max_frames_per_episode=100, noop_max=0)
    tallies = {}
    for autoreset in ("same_step", "next_step"):
        tally = tallies[autoreset] = lockstep.Tally()
        assert not lockstep.compare_steps(
            "breakout", settings, steps=120, num_envs=2, autoreset=autoreset, tally=tally
        )
    assert [tally.games_over for tally in tallies.values()] == [8, 8]
    # A reset presses FIRE for a frame, and takes a step of its own or none.
    assert tallies["same_step"].frames == 2 * 120 * 4 + 8
    assert tallies["next_step"].frames == (2 * 120 - 8) * 4 + 8
    assert tallies["same_step"].life_losses > 0


def test_a_last_observation_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LyingEmulator, "lies_about", "final_obs")
    monkeypatch.setattr(lockstep, "Emulator", LyingEmulator)
    settings = AtariSettings(life_loss="ignore", max_frames_per_episode=100)

    found = str(lockstep.compare_steps("breakout", settings, steps=30, num_envs=2))

    assert found.startswith("breakout, step 24 "), found
    assert ": final_obs at (1, 0, 0, 0), " in found
