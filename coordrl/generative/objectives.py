"""Objectives of generator and discriminator: the paper's, and one that trains more reliably.

Each is a pair of losses, so that both arms can be trained with either.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

ObjectiveName = Literal["paper", "r3gan"]
Discriminate = Callable[[Tensor], Tensor]
"""From pictures ``(N, 3, size, size)`` to logits ``(N, 1)``; high for real ones."""


class Objective(Protocol):
    """A game between a generator and a discriminator."""

    def discriminator_loss(self, discriminate: Discriminate, real: Tensor, fake: Tensor) -> Tensor:
        """Return the discriminator's loss for detached pictures; a scalar."""

    def generator_loss(self, discriminate: Discriminate, real: Tensor, fake: Tensor) -> Tensor:
        """Return the loss of the generator, which made the fake pictures; a scalar."""


@dataclass(frozen=True)
class PaperObjective:
    """The non-saturating cross-entropy of Goodfellow et al., NeurIPS 2014, as in the paper."""

    def discriminator_loss(self, discriminate: Discriminate, real: Tensor, fake: Tensor) -> Tensor:
        """Return the cross-entropy of classifying real and generated pictures."""
        return F.softplus(-discriminate(real)).mean() + F.softplus(discriminate(fake)).mean()

    def generator_loss(self, discriminate: Discriminate, real: Tensor, fake: Tensor) -> Tensor:
        """Return the cross-entropy of classifying generated pictures as real."""
        return F.softplus(-discriminate(fake)).mean()


@dataclass(frozen=True)
class R3GAN:
    """The relativistic loss with penalties on real and fake gradients.

    Huang et al., "The GAN is dead; long live the GAN! A Modern GAN Baseline", NeurIPS 2024,
    https://arxiv.org/abs/2501.05441. Each fake picture is compared with a real one, so giving up
    modes is not rewarded; the penalties R1 and R2, squared norms of the discriminator's gradient at
    real and at fake pictures, make the game converge. The discriminator must not mix the pictures
    of a batch, so it cannot have batch norm.
    """

    gamma: float = 1.0
    """Weight of the penalties."""

    def discriminator_loss(self, discriminate: Discriminate, real: Tensor, fake: Tensor) -> Tensor:
        """Return the loss of telling real from fake in pairs, with both penalties."""
        pictures = torch.cat([real, fake]).requires_grad_()
        logits = discriminate(pictures)
        of_real, of_fake = logits.chunk(2)
        # Twice the mean over the joint batch is the sum of R1 and R2.
        penalty = 2 * squared_gradient(logits, pictures).mean()
        return F.softplus(of_fake - of_real).mean() + 0.5 * self.gamma * penalty

    def generator_loss(self, discriminate: Discriminate, real: Tensor, fake: Tensor) -> Tensor:
        """Return the loss of making fake pictures look more real than real ones."""
        with torch.no_grad():
            of_real = discriminate(real)
        return F.softplus(of_real - discriminate(fake)).mean()


def squared_gradient(logits: Tensor, pictures: Tensor) -> Tensor:
    """Return the squared norm of each logit's gradient by its own picture, ``(N,)``.

    A picture's logit must depend only on that picture.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), pictures, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3))


def make_objective(name: ObjectiveName, gamma: float) -> Objective:
    """Return an objective by its name; only R3GAN uses ``gamma``, the weight of its penalties.

    Example:
        >>> make_objective("r3gan", gamma=0.5)
        R3GAN(gamma=0.5)
        >>> make_objective("paper", gamma=0.5)
        PaperObjective()
    """
    return PaperObjective() if name == "paper" else R3GAN(gamma)


def autoencoder_loss(
    logits: Tensor, pictures: Tensor, mean: Tensor, log_variance: Tensor, beta: float
) -> Tensor:
    """Return the negative evidence lower bound in nats per picture, averaged over the batch.

    Args:
        logits: Output of the decoder; their sigmoids are the probabilities that a channel is on.
        pictures: Targets in [-1, 1], of the same shape.
        mean: Means of the latent vectors, ``(N, latent)``.
        log_variance: Logarithms of their variances.
        beta: Weight of the divergence from the standard normal; a true bound has 1.

    Example:
        >>> logits, pictures = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
        >>> mean, log_variance = torch.tensor([[2.0, 0.0]]), torch.zeros(1, 2)
        >>> autoencoder_loss(logits, pictures, mean, log_variance, beta=1.0)
        tensor(10.3178)
    """
    likelihood = F.binary_cross_entropy_with_logits(logits, (pictures + 1) / 2, reduction="none")
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    return likelihood.sum(dim=(1, 2, 3)).mean() + beta * divergence.sum(dim=1).mean()
