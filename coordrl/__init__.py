"""CoordConv layers, CoordConv agents for Stable-Baselines3, and an exact Atari 2600."""
