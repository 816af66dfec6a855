"""The settings of a generative run, as frozen dataclasses read from TOML."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from coordrl.backbone import Norm
from coordrl.config import (
    Override,
    SettingsError,
    load_settings,
    read_toml,
    require_at_least,
    take_types,
)
from coordrl.generative.data import Canvas
from coordrl.generative.objectives import ObjectiveName

Model = Literal["gan", "vae"]
Arm = Literal["none", "all"]
Scale = Literal["quick", "small", "paper"]
_NAMED_DATA = ("clevr", "lsun")


@dataclass(frozen=True)
class NetworkSettings:
    """Sizes of the networks; the defaults are the paper's."""

    latent: int = 256
    """Length of the latent vector."""
    generator_channels: int = 64
    """Channels of the generator's narrowest hidden layer; the widest has eight times as many."""
    discriminator_channels: int = 64
    """Channels of the first layer of discriminator or encoder; the last has eight times as many."""
    discriminator_norm: Norm = "batch"
    """Norm after the discriminator's convolutions; R3GAN and the encoder need ``"none"``."""
    tanh: bool = True
    """End the CoordConv generator in tanh; the authors' discriminator sees the values before it."""

    def __post_init__(self) -> None:
        take_types(self)
        require_at_least(1, self, "latent", "generator_channels", "discriminator_channels")


@dataclass(frozen=True)
class GanSettings:
    """How generator and discriminator are trained, by Adam. The defaults are the paper's.

    Raises:
        ValueError: If a number is out of range.
    """

    objective: ObjectiveName = "paper"
    """The paper's cross-entropy, or R3GAN's relativistic loss with gradient penalties."""
    gamma: float = 1.0
    """Weight of the gradient penalties; R3GAN only."""
    generator_lr: float = 5e-4
    """Step size of the generator."""
    discriminator_lr: float = 1e-4
    """Step size of the discriminator."""
    beta1: float = 0.9
    """Decay of Adam's mean of gradients."""
    beta2: float = 0.99
    """Decay of Adam's mean of squared gradients."""
    generator_steps: int = 2
    """Generator steps, on the same pictures and latent vectors, per discriminator step."""
    average: float = 0.0
    """Decay of the running average of the generator's weights, which pictures are generated with;
    0 uses the weights themselves."""

    def __post_init__(self) -> None:
        take_types(self)
        require_at_least(0, self, "gamma", "beta1", "beta2", "average")
        require_at_least(1, self, "generator_steps")
        if min(self.generator_lr, self.discriminator_lr) <= 0:
            raise ValueError(
                f"generator_lr and discriminator_lr must be positive, got {self.generator_lr} and"
                f" {self.discriminator_lr}"
            )
        if max(self.beta1, self.beta2, self.average) >= 1:
            raise ValueError(
                f"beta1, beta2 and average must be below 1, got {self.beta1}, {self.beta2} and"
                f" {self.average}"
            )


@dataclass(frozen=True)
class VaeSettings:
    """How the autoencoder is trained: by Adam, on the evidence bound. The paper does not say how.

    Raises:
        ValueError: If a number is out of range.
    """

    learning_rate: float = 1e-3
    """Step size of Adam."""
    beta: float = 1.0
    """Weight of the divergence from the standard normal; 1 is a true bound."""

    def __post_init__(self) -> None:
        take_types(self)
        require_at_least(0, self, "beta")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")


@dataclass(frozen=True)
class Recipe:
    """Length, pictures and evaluations of a run.

    Raises:
        ValueError: If a number is out of range.
    """

    iterations: int = 156_250
    """Length of the run in batches; the paper's is 50 epochs."""
    batch_size: int = 16
    """Pictures in a batch, at least 2: batch norm has no variance in one."""
    pictures: int = 50_000
    """Pictures in the set, if they are drawn rather than read."""
    evaluation_interval: int = 3_125
    """Iterations between two evaluations."""
    samples: int = 1_000
    """Generated pictures in an evaluation."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of convolutions and matrix products in a step; losses and optimizers are in float32.
    bfloat16 takes two thirds of the processor time on a CPU with AMX, 0.8 to 0.9 of it with AVX-512
    BF16, and more than float32 on others."""
    max_seconds: float | None = None
    """Seconds of processor time, not counting evaluations, after which the run is cut short."""

    def __post_init__(self) -> None:
        take_types(self)
        require_at_least(1, self, "iterations", "evaluation_interval", "samples", "pictures")
        if self.max_seconds is not None and self.max_seconds <= 0:
            raise ValueError(f"max_seconds must be positive, got {self.max_seconds}")
        if self.batch_size < 2:
            raise ValueError(
                f"batch_size must be at least 2, got {self.batch_size}: batch norm has no spread in"
                " one picture"
            )


@dataclass(frozen=True)
class GenerativeSettings:
    """All settings of a run; two runs with equal settings are the same run."""

    model: Model = "gan"
    """A generative adversarial network, or a variational autoencoder."""
    coords: Arm = "all"
    """Whether generator and discriminator, or both halves of the autoencoder, see coordinates;
    without them the generator is the paper's baseline of transposed convolutions."""
    data: str = "clevr"
    """Two-object Sort-of-Clevr, LSUN's bedrooms, or a folder of pictures, however it is spelled:
    ``rooms/`` is ``rooms``."""
    seed: int = 0
    """Seed of the run, split into weights, pictures, latent vectors and evaluation."""
    canvas: Canvas = field(default_factory=Canvas)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    training: Recipe = field(default_factory=Recipe)
    gan: GanSettings = field(default_factory=GanSettings)
    vae: VaeSettings = field(default_factory=VaeSettings)

    def __post_init__(self) -> None:
        path = str(Path(self.data)) if self.data else ""
        if path not in _NAMED_DATA:  # ./clevr stays a folder
            object.__setattr__(self, "data", path)


def folder_meant(data: object) -> object:
    """Return the place of a folder of pictures; anything else as it is.

    Example:
        >>> folder_meant("./rooms/") == folder_meant("rooms"), folder_meant("clevr")
        (True, 'clevr')
    """
    if not isinstance(data, str) or data in ("", *_NAMED_DATA):
        return data
    return os.path.realpath(data)


def require_consistent(settings: GenerativeSettings) -> None:
    """Check combinations of settings.

    Raises:
        SettingsError: If two settings contradict each other.
    """
    if settings.canvas.size % 16:
        raise SettingsError(
            f"canvas.size must be a multiple of 16, which the networks halve four times, got"
            f" {settings.canvas.size}"
        )
    mixes = settings.network.discriminator_norm == "batch"
    if mixes and settings.model == "gan" and settings.gan.objective == "r3gan":
        raise SettingsError(
            'the objective r3gan needs network.discriminator_norm="none": batch norm mixes the'
            " pictures whose gradients are penalized one by one"
        )


def load_generative_settings(
    path: Path | None,
    scale: Scale,
    model: Model,
    coords: Arm,
    objective: ObjectiveName = "r3gan",
    overrides: tuple[Override, ...] = (),
) -> GenerativeSettings:
    """Read the settings of a run from the file's tables for its scale and its recipe.

    These are ``[scale.<scale>]``, and ``[recipe.vae]``, ``[recipe.paper]`` or ``[recipe.r3gan]``.

    Raises:
        SettingsError: If the file cannot be read or a setting does not fit.
    """
    recipe = objective if model == "gan" else "vae"
    layers = []
    if path is not None:
        tables = read_tables(path)
        for kind, name in (("scale", scale), ("recipe", recipe)):
            source = f"{path}, [{kind}.{name}]"
            layers += [Override(k, v, source) for k, v in tables[kind].get(name, {}).items()]
    chosen: dict[str, str] = {"model": model, "coords": coords}
    if model == "gan":
        chosen["gan.objective"] = objective
    fixed = [Override(key, value, "the command line") for key, value in chosen.items()]
    settings = load_settings(GenerativeSettings, overrides=(*layers, *fixed, *overrides))
    require_consistent(settings)
    return settings


def read_tables(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the file's tables by kind and name.

    Raises:
        SettingsError: If the file cannot be read or has other tables.
    """
    kinds = {"scale": get_args(Scale), "recipe": (*get_args(ObjectiveName), "vae")}
    document = read_toml(path)
    for kind, tables in document.items():
        known = kinds.get(kind)
        if known is None or not isinstance(tables, dict):
            raise SettingsError(f"{path}: expects tables of {' and '.join(kinds)}, got {kind!r}")
        for name in tables:
            if name not in known:
                raise SettingsError(f"{path}: [{kind}] knows {', '.join(known)}, got {name!r}")
    return {kind: document.get(kind, {}) for kind in kinds}
