"""Client-level differential privacy on the server: the shared tensors hardly tell what one client held (DP-FedAvg).

McMahan et al., ICLR 2018, with every client chosen counted alike. The guarantee is for whoever sees the shared tensors,
not the server, which sees every update in the clear, nor the losses that clients report to it. Epsilon covers what is
clipped, averaged and noised: the shared tensors. Those that clients keep (every floating buffer: batch-norm statistics,
banks, key encoders) get no noise; the server holds them between rounds, and a released client's checkpoint and the
scores of that client's model tell of them. And it is that of one run: runs on the same clients (seeds, `fresh`, tuning)
compose.
"""

import math
import secrets
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from datamodules.errors import InputError
from federated.state import State

# Said beside every epsilon.
COVERED = "the shared tensors of this run, not those clients keep; runs on the same clients compose"


@dataclass(frozen=True)
class ClientLevelPrivacy:
    """Updates clipped to L2 norm `clip` over all tensors together, and Gaussian noise of `noise` x `clip` on their sum.

    delta: for which epsilon is told; well below 1 / clients.

    The noise comes from the operating system's entropy, so no run can be repeated to the bit: with noise that a seed in
    the configuration tells, there would be no privacy. Its floating-point numbers are not hardened against an attack on
    their last digits (Mironov, CCS 2012).
    """

    clip: float
    noise: float
    delta: float = 1e-5

    def __post_init__(self) -> None:
        if not (self.clip > 0 and self.noise >= 0 and 0 < self.delta < 1):
            found = f"clip {self.clip}, noise {self.noise}, delta {self.delta}"
            raise InputError(
                f"privacy: expected clip above 0, noise of 0 or more, delta between 0 and 1, found {found}"
            )

    def bounded(self, state: State, begin: State) -> State:
        """A client's change of `begin` in float64, scaled down to norm `clip` where it is longer."""
        change = {name: state[name].double() - begin[name].double() for name in state}
        norm = math.sqrt(sum(float(part.square().sum()) for part in change.values()))
        scale = min(1.0, self.clip / norm) if norm > 0 else 1.0
        return {name: part * scale for name, part in change.items()}

    def released(self, mean: State, back: int, begin: State, chosen: int) -> State:
        """The state that the server goes on with: begin + (sum of bounded changes + noise) / clients chosen.

        mean: of the bounded changes of the `back` clients that came back. Divided by those chosen, not by those: a
        client that fails is one that changes nothing.
        """
        source = np.random.Generator(np.random.PCG64(secrets.randbits(128)))
        return {
            name: begin[name].double() + (part * back + self._noise(part, source)) / chosen
            for name, part in mean.items()
        }

    def _noise(self, like: torch.Tensor, source: np.random.Generator) -> torch.Tensor:
        return torch.from_numpy(source.normal(0.0, 1.0, tuple(like.shape))) * (self.noise * self.clip)

    def epsilon(self, rounds: Iterable[Iterable[int]]) -> float:
        """Epsilon at `delta` after rounds with these clients, for the client that took part most often.

        Accountant: Gaussian differential privacy (Dong, Roth, Su, JRSS-B 2022), which is exact here: n rounds of noise
        z are one Gaussian mechanism of mu = sqrt(n) / z, adding or removing a client. No amplification by sampling:
        the schedule of clients is public. Infinite without noise.
        """
        took_part = Counter(client for chosen in rounds for client in chosen)
        most = max(took_part.values(), default=0)
        if most == 0:
            return 0.0
        return math.inf if self.noise == 0 else gaussian_epsilon(math.sqrt(most) / self.noise, self.delta)


def gaussian_delta(mu: float, epsilon: float) -> float:
    """delta of the Gaussian mechanism of sensitivity mu and noise 1 at epsilon (Balle and Wang, ICML 2018)."""
    lower = _normal_cdf(mu / 2 - epsilon / mu)
    # exp(epsilon) Phi(x), where exp alone would overflow.
    upper = math.exp(epsilon + _log_normal_cdf(-mu / 2 - epsilon / mu))
    return lower - upper


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The smallest epsilon of 0 or more whose `gaussian_delta` is at most delta, by bisection, rounded up."""
    if gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while gaussian_delta(mu, high) > delta:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(mu, middle) > delta else (low, middle)
    return high


def _normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def _log_normal_cdf(x: float) -> float:
    return float(torch.special.log_ndtr(torch.tensor(x, dtype=torch.float64)))
