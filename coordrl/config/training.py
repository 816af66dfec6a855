"""The settings of one training run."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from coordrl.config.atari import AtariSettings, Protocol
from coordrl.config.values import Schedule, require_at_least, take_types


@dataclass(frozen=True)
class OptimizerSettings:
    """The optimizer of the policy; its learning rate belongs to the algorithm.

    Raises:
        ValueError: If a value cannot be converted to its field's type, or ``eps`` is not positive.
    """

    name: Literal["Adam", "RMSprop", "RMSpropTFLike"] = "Adam"
    """Class: PyTorch's (Adam runs fused), or SB3's copy of TensorFlow's RMSprop."""
    eps: float = 1e-5
    """Term added to the denominator to keep the division finite."""

    def __post_init__(self) -> None:
        take_types(self)
        if self.eps <= 0:
            raise ValueError(f"eps must be positive, got {self.eps}")


@dataclass(frozen=True)
class AccelerationSettings:
    """How algorithms compute if their rollouts stay on the device (``run.on_device``).

    Raises:
        ValueError: If a value is not a bool.
    """

    bfloat16: bool = False
    """Compute features in bfloat16 (autocast); weights, heads, losses and optimizer in float32."""
    channels_last: bool = True
    """Keep weights and observations in the layout that convolutions read fastest."""
    compile: bool = False
    """Compile the network with torch.compile, which takes a minute at the start."""
    cuda_graphs: bool = False
    """Record acting, and the updates of PPO and DQN, as CUDA graphs."""

    def __post_init__(self) -> None:
        take_types(self)


@dataclass(frozen=True)
class RunSettings:
    """One training run: what is trained, for how long, and how often it is evaluated and saved.

    Raises:
        ValueError: If a value cannot be converted to its field's type, or a number is out of
            range.
    """

    game: str = "Pong"
    """Atari game, in any usual spelling: "Pong", "MsPacman", "ms_pacman", "ALE/Pong-v5"."""
    algo: Literal["a2c", "ppo", "dqn"] = "ppo"
    """Algorithm of Stable-Baselines3."""
    protocol: Protocol = "classic"
    """Rules of training and evaluation: SB3's and the zoo's, or those of Machado et al. (2018)."""
    total_steps: int = 10_000_000
    """Length of the run in agent steps, counted over all environments."""
    num_envs: int = 8
    """Games played at the same time, by all processes together."""
    stagger: int = 0
    """Agent steps over which the beginnings of games are spread, for PPO and A2C. The random
    actions in these steps are not counted."""
    seed: int = 0
    """Seed of the run, split into environment, policy, data and evaluation streams."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the network; auto takes the GPU if there is one."""
    on_device: bool = False
    """Keep games, rollouts and replay on that device as well, instead of in host arrays."""
    target_return: float | None = None
    """End the run as soon as an evaluation reaches this mean episode return."""
    evaluation_interval: int = 250_000
    """Agent steps between two evaluations; 0 evaluates only at the end."""
    evaluation_episodes: int = 10
    """Episodes of an evaluation."""
    checkpoint_interval: int = 100_000
    """Agent steps between two checkpoints; a stopped run is saved in any case."""
    log_interval: int = 10_000
    """Agent steps between two points of the learning curve and of the tracker."""
    track: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    """Tracker that shows the learning curves."""

    def __post_init__(self) -> None:
        take_types(self)
        positive = ("total_steps", "num_envs", "evaluation_episodes", "checkpoint_interval")
        require_at_least(1, self, *positive, "log_interval")
        require_at_least(0, self, "seed", "stagger", "evaluation_interval")


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that decides a training run; two runs with equal settings are the same run.

    Raises:
        ValueError: If settings contradict each other, or a keyword of the algorithm is out of
            range.

    Example:
        >>> TrainingSettings(run=RunSettings(game="Breakout"), algorithm={"gamma": 1.5})
        Traceback (most recent call last):
        ValueError: algorithm.gamma must be at most 1, got 1.5
    """

    run: RunSettings = field(default_factory=RunSettings)
    env: AtariSettings = field(default_factory=AtariSettings)
    algorithm: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the algorithm's class in Stable-Baselines3. DQN's ``gradient_steps`` are
    per environment: the model makes ``run.num_envs`` times as many, so that the number of
    environments does not change how often a transition is learned from."""
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    acceleration: AccelerationSettings = field(default_factory=AccelerationSettings)
    extractor: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of :func:`coordrl.extractors.policy_kwargs`."""

    def __post_init__(self) -> None:
        if self.run.algo == "dqn" and self.run.stagger > 0:
            raise ValueError(
                "run.stagger is for ppo and a2c, which learn from the games at hand; dqn's replay "
                f"mixes them by itself: leave it at 0, got {self.run.stagger}"
            )
        plain, chosen = AccelerationSettings(), self.acceleration
        for item in dataclasses.fields(plain):
            default = getattr(plain, item.name)
            if not self.run.on_device and getattr(chosen, item.name) != default:
                raise ValueError(
                    f"acceleration.{item.name} is for runs that stay on the device: set "
                    f"run.on_device = true, or acceleration.{item.name} = {str(default).lower()}"
                )
        self._require_steps()
        features = self.extractor.get("features_dim", 1)
        if isinstance(features, int) and features < 1:
            raise ValueError(f"extractor.features_dim must be at least 1, got {features}")
        for key, value in self.algorithm.items():
            numbers = (value.start, value.end) if isinstance(value, Schedule) else (value,)
            if not isinstance(numbers[0], int | float):
                continue
            minimum = _SMALLEST_KEYWORDS.get(key, 0)
            if min(numbers) < minimum:
                raise ValueError(f"algorithm.{key} must be at least {minimum}, got {min(numbers)}")
            if key in _FRACTION_KEYWORDS and max(numbers) > 1:
                raise ValueError(f"algorithm.{key} must be at most 1, got {max(numbers)}")

    def _require_steps(self) -> None:
        """Check dqn's ``train_freq`` if it is a pair of a number and a unit."""
        pair = self.algorithm.get("train_freq")
        if not isinstance(pair, tuple | list):
            return
        if len(pair) != 2 or pair[0] < 1 or pair[1] not in ("step", "episode"):
            raise ValueError(
                'algorithm.train_freq must be a number from 1 on, or such a number with "step" or '
                f'"episode", got {list(pair)}'
            )
        if pair[1] == "episode" and (self.run.num_envs > 1 or self.run.on_device):
            raise ValueError(
                "algorithm.train_freq counts episodes with run.num_envs = 1 and run.on_device = "
                f'false only; count steps, as in [{pair[0]}, "step"]'
            )


_SMALLEST_KEYWORDS = {
    "n_steps": 1,
    "batch_size": 1,
    "n_epochs": 1,
    "buffer_size": 1,
    "train_freq": 1,
    "target_update_interval": 1,
    "gradient_steps": -1,
}
_FRACTION_KEYWORDS = frozenset(
    {
        *("gamma", "gae_lambda", "tau"),
        *("exploration_fraction", "exploration_initial_eps", "exploration_final_eps"),
    }
)
