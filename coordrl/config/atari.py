"""How a game is played and seen."""

import dataclasses
import typing
from dataclasses import dataclass
from typing import Literal

from coordrl.config.values import require_at_least, take_types

Protocol = Literal["classic", "machado"]


@dataclass(frozen=True)
class AtariSettings:
    """How a game is played and seen. The defaults are the classic training protocol.

    One *agent step* is ``frame_skip`` *frames* of the emulator, which are 1/60 second each, as in
    ale-py.

    Raises:
        ValueError: If a value cannot be converted to its field's type (``4.0`` can to an int, a
            list to a tuple), or a number is out of range.

    Example:
        >>> from coordrl.emulator import GAMES, observation_shape
        >>> settings = AtariSettings(observation="rgb", stack_size=2, screen_size=(42, 42))
        >>> observation_shape(GAMES["pong"], settings)
        (2, 42, 42, 3)
        >>> AtariSettings(frame_skip=0)
        Traceback (most recent call last):
        ValueError: frame_skip must be at least 1, got 0
    """

    frame_skip: int = 4
    """Frames that one action is held for, at least 1."""
    stack_size: int = 4
    """Observations in a stack, newest last; zeros before the first."""
    screen_size: tuple[int, int] = (84, 84)
    """Height and width of an observation, in pixels."""
    observation: Literal["gray", "rgb", "ram"] = "gray"
    """What is observed: the gray or colored screen, or the console's 128 bytes of RAM."""
    max_pool: bool = True
    """Observe the maximum of a step's last two frames, so that flickering objects stay visible."""
    noop_max: int = 30
    """The random number of idle frames at a reset is below this; 0 and 1 mean none."""
    fire_reset: bool = True
    """Press FIRE for one frame at a reset, in games that have the action."""
    fire_after_life_loss: bool = True
    """Press FIRE for the step after a lost life as well, since some games wait for it."""
    repeat_action_probability: float = 0.0
    """Probability that a frame repeats the previous frame's action (sticky actions)."""
    full_action_space: bool = False
    """Offer all legal actions instead of the game's minimal set."""
    clip_reward: bool = True
    """Clip each step's reward to -1, 0 or 1; episode statistics keep the game's own points."""
    life_loss: Literal["ignore", "terminate", "reset"] = "terminate"
    """At a lost life: go on; report ``terminated`` and go on (SB3); or reset the game (ale-py)."""
    max_frames_per_episode: int = 108_000
    """Frames after which an episode is truncated, not counting its reset: 30 minutes of play."""
    mode: int | None = None
    """Game mode, or the game's default."""
    difficulty: int | None = None
    """Difficulty switches: bit 0 is the left, bit 1 the right; or the game's default."""

    def __post_init__(self) -> None:
        take_types(self)
        require_at_least(1, self, "frame_skip", "stack_size", "max_frames_per_episode")
        require_at_least(0, self, "noop_max", "mode", "difficulty")
        if min(self.screen_size) < 1:
            raise ValueError(f"screen_size must be at least 1 x 1, got {self.screen_size}")
        if not 0 <= self.repeat_action_probability <= 1:
            raise ValueError(
                f"repeat_action_probability must be in [0, 1], got {self.repeat_action_probability}"
            )


def settings_for(protocol: Protocol, *, training: bool) -> AtariSettings:
    """Return the settings under which a protocol trains or evaluates.

    ========================= ========================= =========================
    rule                      classic                   machado
    ========================= ========================= =========================
    randomness                0 to 29 idle frames       sticky actions, p = 0.25
    actions                   the game's minimal set    all legal ones, mostly 18
    lost life in training     terminates                goes on
    lost life in evaluation   goes on                   goes on
    FIRE for the agent        at reset, after a life    never
    frames per episode        108,000                   18,000
    rewards in training       clipped                   clipped
    rewards in evaluation     the game's points         the game's points
    ========================= ========================= =========================

    *Classic* is the protocol of Mnih et al., Nature 518 (2015), as in Stable-Baselines3 and
    CleanRL, except that games begin as in ale-py's ``AtariVectorEnv``: Stable-Baselines3 has 1 to
    30 idle frames, and plays FIRE and the next action for a whole step each. *Machado* is the
    protocol of Machado et al., "Revisiting the Arcade Learning Environment", JAIR 61 (2018). Of
    that, Dopamine keeps only sticky actions: it plays the minimal action set and episodes of up to
    108,000 frames.

    Args:
        protocol: ``"classic"`` or ``"machado"``.
        training: True for training, False for evaluation.

    Raises:
        ValueError: If there is no such protocol.

    Example:
        >>> settings_for("machado", training=False).repeat_action_probability
        0.25
    """
    if protocol not in typing.get_args(Protocol):
        known = ", ".join(typing.get_args(Protocol))
        raise ValueError(f"protocol must be one of {known}, got {protocol!r}")
    settings = AtariSettings()
    if protocol == "machado":
        settings = AtariSettings(
            noop_max=0,
            fire_reset=False,
            fire_after_life_loss=False,
            repeat_action_probability=0.25,
            full_action_space=True,
            life_loss="ignore",
            max_frames_per_episode=18_000,
        )
    if training:
        return settings
    return dataclasses.replace(settings, life_loss="ignore", clip_reward=False)
