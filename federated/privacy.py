"""Client-level differential privacy on the server: what a run releases hardly tells what one client held (DP-FedAvg).

McMahan et al., ICLR 2018, with every client chosen counted alike. The guarantee is for whoever sees what comes out of
the run (model, ledger, scores, records), not against the server, which sees every update in the clear. Everything that
clients learn is clipped, averaged and noised: `covered` refuses a model with tensors of another kind, what clients
measure on their own data is not recorded, and of who holds what `public` alone is. Told as they are: which clients take
part, how many samples each holds, fingerprints of the data, who failed with which kind of error, seconds and steps of
each. Epsilon is that of adding or removing a client, in one run: runs on the same clients (seeds, `fresh`, tuning)
compose.
"""

import math
import secrets
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from datamodules.errors import InputError
from federated.adapter import Adapter
from federated.state import State

# Said beside every epsilon.
COVERED = (
    "a client added or removed (one replaced: the epsilon of half the noise), in all that this run releases of its "
    "clients but sizes, fingerprints, failures and times; runs on the same clients compose"
)
# What is told of who holds what: neither labels nor modalities, which are the clients' data.
PUBLIC = ("kind", "settings", "sizes", "server", "sites")


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

    def covered(self, adapter: Adapter, personal: Collection[str]) -> None:
        """Raises InputError unless noise covers all that is exchanged: trained parameters that are averaged.

        personal: names that each client has for itself. Their noise would be one client's alone; buffers (batch-norm
        statistics, banks) change by what one clip does not bound, and noise makes variances negative.
        """
        keys = "take a method without federated.carry"
        groups = "take a model without them, as SDS-CL with method.norm_groups=8"
        rule = "take a federated/strategy that averages"
        for names, kind, do in (
            (adapter.carried, "parameters carried without gradient", keys),
            (adapter.buffers, "buffers", groups),
            (personal, "parameters that each client keeps", rule),
        ):
            if names:
                found = f"found {len(names)} {kind} ('{min(names)}')"
                raise InputError(
                    f"privacy: expected trained and averaged parameters alone, which noise covers, {found}: {do}, or "
                    "federated/privacy=none"
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

    def noise_norm(self, numbers: int, chosen: int) -> float:
        """L2 norm of the noise on the mean change of a round, in clips, where the change's own is 1 at most.

        numbers: trained, of one model; chosen: clients of the round.
        """
        return math.sqrt(numbers) * self.noise / chosen

    def forecast(self, numbers: int, chosen: int) -> str:
        """One line before the first round: the noise beside what it is added to, and what to do where it is longer."""
        norm = self.noise_norm(numbers, chosen)
        on = f"{numbers:,} trained numbers and {chosen} clients a round"
        told = f"privacy: noise of norm {norm:.3g} on a mean change of at most 1, in clips, with {on}"
        do = "train fewer numbers (LoRA pairs), ask more clients a round, or take less noise, which is a larger epsilon"
        return told if norm <= 1 else f"{told}. WARNING: what clients learn drowns in it: {do}"

    def epsilon(self, rounds: Iterable[Iterable[int]]) -> float:
        """Epsilon at `delta` after rounds with these clients, for the client that took part most often.

        Accountant: Gaussian differential privacy (Dong, Roth, Su, JRSS-B 2022), which is exact here: n rounds of noise
        z are one Gaussian mechanism of mu = sqrt(n) / z, adding or removing a client. A client replaced by another
        moves the sum by up to two clips: that is mu, and so the epsilon of half the noise. No amplification by
        sampling: the schedule of clients is public. Infinite without noise.
        """
        took_part = Counter(client for chosen in rounds for client in chosen)
        most = max(took_part.values(), default=0)
        if most == 0:
            return 0.0
        return math.inf if self.noise == 0 else gaussian_epsilon(math.sqrt(most) / self.noise, self.delta)


def public(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Of who holds what, the part that a private run tells."""
    return {name: manifest[name] for name in PUBLIC if name in manifest}


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
