"""One training step of a GAN or a VAE, through the same interface."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from coordrl.backbone import Coords, count_parameters, initialize_he_normal
from coordrl.generative.networks import (
    Autoencoder,
    CoordConvGenerator,
    DeconvGenerator,
    Discriminator,
)
from coordrl.generative.objectives import autoencoder_loss, make_objective
from coordrl.generative.settings import GenerativeSettings, require_consistent

_LATENTS_AT_ONCE = 250


class Gan:
    """A generator and its discriminator.

    Args:
        settings: Sizes, arm and optimizers.
        generator: Random generator for the initial weights, on the CPU.
        device: Device to train on.
    """

    def __init__(
        self, settings: GenerativeSettings, generator: torch.Generator, device: torch.device
    ) -> None:
        gan = settings.gan
        self.settings = settings
        self.objective = make_objective(gan.objective, gan.gamma)
        self.generator = _generator(settings, tanh=settings.network.tanh)
        self.discriminator = _discriminator(settings)
        for module in (self.generator, self.discriminator):
            initialize_he_normal(module, generator)
            module.to(device)
        self._autocast = _autocast(settings, device)
        self.averaged = copy.deepcopy(self.generator) if gan.average else None
        betas = (gan.beta1, gan.beta2)
        self._generator_optimizer = torch.optim.Adam(
            self.generator.parameters(), gan.generator_lr, betas, fused=True
        )
        self._discriminator_optimizer = torch.optim.Adam(
            self.discriminator.parameters(), gan.discriminator_lr, betas, fused=True
        )

    @property
    def parameters(self) -> dict[str, int]:
        """Trainable parameters of generator and discriminator."""
        return {
            "generator": count_parameters(self.generator),
            "discriminator": count_parameters(self.discriminator),
        }

    def is_finite(self) -> bool:
        """Tell whether all weights are numbers."""
        return _is_finite(self.generator) and _is_finite(self.discriminator)

    def latents(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw latent vectors, uniform in [-1, 1]."""
        shape = count, self.settings.network.latent
        return torch.rand(shape, generator=generator, device=generator.device) * 2 - 1

    def learn(self, real: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Take one step of the discriminator, then the steps of the generator."""
        self.generator.train()
        latents = self.latents(len(real), generator)
        fake = self._make(latents)
        d_loss = self.objective.discriminator_loss(self._discriminate, real, fake.detach())
        self._discriminator_optimizer.zero_grad()
        d_loss.backward()  # type: ignore[no-untyped-call]
        self._discriminator_optimizer.step()

        self.discriminator.requires_grad_(False)
        for step in range(self.settings.gan.generator_steps):
            # The first step has not changed the generator yet.
            pictures = fake if step == 0 else self._make(latents)
            g_loss = self.objective.generator_loss(self._discriminate, real, pictures)
            self._generator_optimizer.zero_grad()
            g_loss.backward()  # type: ignore[no-untyped-call]
            self._generator_optimizer.step()
        self.discriminator.requires_grad_(True)
        self._average()
        return {"discriminator": d_loss.detach(), "generator": g_loss.detach()}

    def _make(self, latents: Tensor) -> Tensor:
        with self._autocast():
            pictures: Tensor = self.generator(latents)
        return pictures.float()

    def _discriminate(self, pictures: Tensor) -> Tensor:
        with self._autocast():
            logits: Tensor = self.discriminator(pictures)
        return logits.float()

    def _average(self) -> None:
        if self.averaged is None:
            return
        with torch.no_grad():
            averages: list[Tensor] = list(self.averaged.parameters())
            weights: list[Tensor] = list(self.generator.parameters())
            torch._foreach_lerp_(averages, weights, 1 - self.settings.gan.average)
            for average, own in zip(self.averaged.buffers(), self.generator.buffers(), strict=True):
                average.copy_(own)

    def generate(self, latents: Tensor) -> Tensor:
        """Return the pictures of latent vectors, by the generator or its running average."""
        shown = self.averaged or self.generator
        return _in_parts(shown, latents).clamp(-1, 1)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of networks and optimizers."""
        return {
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "generator_optimizer": self._generator_optimizer.state_dict(),
            "discriminator_optimizer": self._discriminator_optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the states of networks and optimizers."""
        self.generator.load_state_dict(state["generator"])
        self.discriminator.load_state_dict(state["discriminator"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        self._generator_optimizer.load_state_dict(state["generator_optimizer"])
        self._discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])


class Vae:
    """A variational autoencoder.

    Args:
        settings: Sizes, arm and optimizer.
        generator: Random generator for the initial weights, on the CPU.
        device: Device to train on.
    """

    def __init__(
        self, settings: GenerativeSettings, generator: torch.Generator, device: torch.device
    ) -> None:
        self.settings = settings
        encoder = _discriminator(settings, outputs=2 * settings.network.latent)
        # The loss takes logits.
        self.autoencoder = Autoencoder(encoder, _generator(settings, tanh=False))
        initialize_he_normal(self.autoencoder, generator)
        self.autoencoder.to(device)
        self._autocast = _autocast(settings, device)
        self._optimizer = torch.optim.Adam(
            self.autoencoder.parameters(), settings.vae.learning_rate, fused=True
        )

    @property
    def parameters(self) -> dict[str, int]:
        """Trainable parameters of encoder and decoder."""
        return {
            "encoder": count_parameters(self.autoencoder.encoder),
            "decoder": count_parameters(self.autoencoder.decoder),
        }

    def is_finite(self) -> bool:
        """Tell whether all weights are numbers."""
        return _is_finite(self.autoencoder)

    def latents(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw latent vectors from the standard normal."""
        shape = count, self.settings.network.latent
        return torch.randn(shape, generator=generator, device=generator.device)

    def learn(self, real: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Take one step."""
        self.autoencoder.train()
        latents = self.latents(len(real), generator)
        with self._autocast():
            logits, mean, log_variance = (part.float() for part in self.autoencoder(real, latents))
        loss = autoencoder_loss(logits, real, mean, log_variance, self.settings.vae.beta)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return {"bound": loss.detach()}

    def encode(self, pictures: Tensor) -> Tensor:
        """Return the most likely latent vectors of pictures, ``(N, latent)``."""
        self.autoencoder.eval()
        with torch.no_grad():
            return self.autoencoder.encode(pictures)[0]

    def generate(self, latents: Tensor) -> Tensor:
        """Return the expected pictures of latent vectors."""
        # 2 p - 1, where p is the probability of a logit.
        return (_in_parts(self.autoencoder.decoder, latents) / 2).tanh()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of network and optimizer."""
        return {
            "autoencoder": self.autoencoder.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the states of network and optimizer."""
        self.autoencoder.load_state_dict(state["autoencoder"])
        self._optimizer.load_state_dict(state["optimizer"])


def build_model(
    settings: GenerativeSettings, generator: torch.Generator, device: torch.device
) -> Gan | Vae:
    """Return the untrained model of a run.

    Raises:
        SettingsError: If settings contradict each other.
    """
    require_consistent(settings)
    return (Gan if settings.model == "gan" else Vae)(settings, generator, device)


def _generator(settings: GenerativeSettings, *, tanh: bool) -> CoordConvGenerator | DeconvGenerator:
    network = settings.network
    sizes = settings.canvas.size, network.latent, network.generator_channels
    if settings.coords == "all":
        return CoordConvGenerator(*sizes, tanh=tanh)
    # The authors always end this one in tanh.
    return DeconvGenerator(*sizes, tanh=tanh or settings.model == "gan")


def _discriminator(settings: GenerativeSettings, outputs: int = 1) -> Discriminator:
    network = settings.network
    coords: Coords = "first" if settings.coords == "all" else "none"
    sizes = settings.canvas.size, network.discriminator_channels
    return Discriminator(*sizes, coords, network.discriminator_norm, outputs)


def _autocast(
    settings: GenerativeSettings, device: torch.device
) -> Callable[[], AbstractContextManager[Any]]:
    """Return the context to compute the networks of a step in."""
    is_half = settings.training.precision == "bfloat16"
    return partial(torch.autocast, device.type, torch.bfloat16, enabled=is_half)


def _is_finite(network: nn.Module) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in network.state_dict().values())


def _in_parts(network: nn.Module, latents: Tensor) -> Tensor:
    network.eval()
    with torch.no_grad():
        return torch.cat([network(part) for part in torch.split(latents, _LATENTS_AT_ONCE)])
