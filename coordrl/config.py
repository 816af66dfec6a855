"""Run settings: what can be chosen, its default, and one sentence on what it does.

Settings travel whole, as frozen dataclasses. A key in a TOML file is the name of a field, spelled
the same; nothing is renamed on the way.
"""

from dataclasses import dataclass
from typing import Literal

Protocol = Literal["classic", "machado"]


@dataclass(frozen=True)
class AtariSettings:
    """How a game is played and seen. The defaults are the classic protocol of training.

    One *agent step* is ``frame_skip`` *frames* of the emulator; 60 frames are one second.
    """

    frame_skip: int = 4
    """Frames that one action is held for, at least 1."""
    stack_size: int = 4
    """Observations stacked along the channel axis, newest last; zeros before the first."""
    screen_size: tuple[int, int] = (84, 84)
    """Height and width of an observation, in pixels."""
    observation: Literal["gray", "rgb", "ram"] = "gray"
    """What is observed: the gray or colored screen, or the console's 128 bytes of RAM."""
    max_pool: bool = True
    """Observe the maximum of a step's last two frames, so that flickering objects stay visible."""
    noop_max: int = 30
    """Upper limit of the random number of idle frames at a reset; 0 and 1 mean none."""
    fire_reset: bool = True
    """Press FIRE for one frame at a reset, in games that have the action."""
    fire_after_life_loss: bool = True
    """Press FIRE after a lost life as well, in games that wait for it, so that play goes on."""
    repeat_action_probability: float = 0.0
    """Probability that a frame repeats the action of the frame before (sticky actions)."""
    full_action_space: bool = False
    """Offer all legal actions instead of the game's minimal set."""
    clip_reward: bool = True
    """Clip each step's reward to -1, 0 or 1; episode statistics keep the game's own points."""
    life_loss: Literal["ignore", "terminate", "reset"] = "terminate"
    """At a lost life: go on; report ``terminated`` and go on (SB3); or reset the game (ale-py)."""
    max_frames_per_episode: int = 108_000
    """Frames after which an episode is truncated: 30 minutes of play."""
    mode: int | None = None
    """Game mode, or the game's default."""
    difficulty: int | None = None
    """Difficulty switches: bit 0 is the left, bit 1 the right; or the game's default."""
