"""One Atari training run: settings, training, checkpoints, and the agent at its end.

settings = load_training_settings(Path("configs/ppo.toml"), [parse_override("run.game=Breakout")])
result = train(settings, Path("runs/Breakout"))
"""

from coordrl.training.run import TrainingResult, train
from coordrl.training.settings import (
    MAY_DIFFER_ON_RESUME,
    default_config,
    load_training_settings,
    run_name,
)

__all__ = [
    "MAY_DIFFER_ON_RESUME",
    "TrainingResult",
    "default_config",
    "load_training_settings",
    "run_name",
    "train",
]
