"""Sites with data of their own: a node's training side is its client, and the server holds a test side alone.

What the server knows of a site is what its node tells: how many samples it holds, their fingerprint, and the model it
has trained on them.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch.utils.data import DataLoader

from datamodules.errors import InputError
from datamodules.partition import Sites
from federated.client import WITHHELD
from federated.data import ClientData
from federated.workloads.base import Workload
from tracking import identity
from tracking.build import build

log = logging.getLogger(__name__)


def at_sites(config: Mapping[str, Any]) -> bool:
    """Whether a resolved configuration leaves the data at sites (`federated/partition=sites`)."""
    return isinstance(build(config["federated"]["partition"]), Sites)


def discreetly(read: Callable[[Mapping[str, Any]], Workload], config: Mapping[str, Any]) -> Workload:
    """What `read` makes of a site's data; an InputError without the message of what went wrong in it.

    That message may quote a line of the data, and the server is told of errors. It stands in the log.
    """
    try:
        return read(config)
    except Exception as error:
        log.exception("this site's data cannot be read")
        raise InputError(f"federation: a site cannot read its data, {type(error).__name__}: {WITHHELD}") from None


@dataclass(frozen=True)
class Holding:
    """What a site tells of its data: samples to train on, fingerprint (SHA-256), whether they are made up."""

    samples: int
    fingerprint: str
    miniature: bool

    @classmethod
    def told(cls, client: int, samples: Any, fingerprint: Any, miniature: Any) -> "Holding":
        """Raises InputError for what no site holds: a node may tell anything."""
        whole = type(samples) is int and samples > 0
        if not whole or not re.fullmatch("[0-9a-f]{64}", str(fingerprint)) or type(miniature) is not bool:
            found = f"{samples!r:.20} and {fingerprint!r:.70}"
            do = "give that node a prepared set with a training side"
            raise InputError(f"federation: expected samples and a fingerprint of client {client}, found {found}; {do}")
        return cls(samples, fingerprint, miniature)


@dataclass(frozen=True)
class Own:
    """At a site: the one client of `data` is number `client` of the federation."""

    data: ClientData
    client: int

    @classmethod
    def of(cls, workload: Workload, client: int) -> "Own":
        """All that a workload trains on as client `client`. Raises InputError where that is nothing."""
        if not workload.counts["train"]:
            found = f"found none at the site of client {client}"
            raise InputError(f"federation: expected training samples, {found}: prepare a folder with a training side")
        return cls(workload.clients, client)

    def num_samples(self, client: int) -> int:
        """How many samples the site holds. Raises InputError for another site's client."""
        return self.data.num_samples(self._first(client))

    def train_dataloader(self, client: int, seed: int) -> DataLoader:
        """The site's batches, shuffled by `seed`. Raises InputError for another site's client."""
        return self.data.train_dataloader(self._first(client), seed)

    def _first(self, client: int) -> int:
        """Where `data` has it. Raises InputError for another site's."""
        if client != self.client:
            raise InputError(
                f"federation: expected a task for client {self.client}, whose site this is, found {client}"
            )
        return 0


@dataclass(frozen=True)
class Elsewhere:
    """On the server: how many samples each site told that it holds."""

    sizes: Sequence[int]

    def num_samples(self, client: int) -> int:
        """How many samples the client's site told that it holds."""
        return self.sizes[client]

    def train_dataloader(self, client: int, seed: int) -> DataLoader:
        """Raises InputError: the samples are elsewhere."""
        raise InputError(f"federation: expected the server to train nobody, found a task for client {client}")


class Sited:
    """The workload of a server whose clients are sites (`Workload`): `here` measures, they hold what is trained on.

    sites: what each told, in the order of their numbers. The fingerprint, and with it the run's key, covers the
    server's own data and every site's. Raises InputError unless the server has what it is to be measured on.
    """

    def __init__(self, here: Workload, sites: Sequence[Holding]):
        for side in here.tested:
            if not here.counts.get(side):
                found = f"found none of {side!r} in its prepared set"
                raise InputError(f"federation: expected samples to measure on at the server, {found}; prepare some")
        self.schema, self.base_model, self.tested = here.schema, here.base_model, here.tested
        self.module, self.evaluate, self.row, self.rate = here.module, here.evaluate, here.row, here.rate
        self.samples, self.save, self.saved = here.samples, here.save, here.saved
        # Of the server's own reading: what a site left out stands in that site's log.
        self.rejected, self.described = here.rejected, here.described
        self.miniature = here.miniature or any(site.miniature for site in sites)
        sizes = [site.samples for site in sites]
        told = [{"client": number, **asdict(site)} for number, site in enumerate(sites)]
        self.fingerprint = identity.digest([here.fingerprint, told])
        self.counts: Mapping[str, int] = dict(here.counts) | {"train": sum(sizes)}
        self.manifest: dict[str, Any] = {
            "kind": Sites.__name__,
            "sizes": sizes,
            "server": here.fingerprint,
            "sites": told,
        }
        self.clients = Elsewhere(sizes)
