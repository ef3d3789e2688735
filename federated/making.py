"""The client that a configuration describes, made wherever clients run: here, in a worker process, on a node."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf

from datamodules.errors import InputError
from federated.adapter import Adapter
from federated.client import Client
from federated.data import ClientData
from federated.device import ALONE, Team
from federated.transport import transport
from federated.workloads.base import Workload
from tracking.build import build

NOTES = logging.getLogger("bitsandbytes.backends.cpu.ops")
DEVICES = {"auto": "auto", "cpu": "cpu", "gpu": "cuda:0", "cuda": "cuda:0"}


@dataclass(frozen=True)
class Resident:
    """The one module of a place, its adapter, and the client that trains it as any client of the federation."""

    module: pl.LightningModule
    adapter: Adapter
    client: Client


def make_workload(config: Mapping[str, Any]) -> Workload:
    """What a resolved configuration federates."""
    hush(config)
    return build(config["workload"], config=OmegaConf.create(dict(config)))


def hush(config: Mapping[str, Any]) -> None:
    """Where nothing is quantised, keep bitsandbytes from saying, when PEFT imports it, that a fast 4-bit kernel fails.

    It reads like an error, and concerns nobody else. Once asked for, quantisation has its line again.
    """
    quantised = (config.get("method") or {}).get("quantization", "none") != "none"
    (NOTES.removeFilter if quantised else NOTES.addFilter)(no_kernel_note)


def no_kernel_note(record: logging.LogRecord) -> bool:
    """Whether a line is another than that one."""
    return "gemm_4bit_forward" not in str(record.msg)


def make_resident(
    config: Mapping[str, Any], workload: Workload, device: str | None = None, data: ClientData | None = None
) -> Resident:
    """config: resolved; device: a torch device, None for the configured one; data: None for all of the workload's."""
    settings = config["federated"]
    module = workload.module()
    adapter = Adapter(module, carry=settings["carry"], local_buffers=settings["local_buffers"])
    client = Client(
        module,
        adapter,
        data or workload.clients,
        terms=build(settings["terms"]),
        device=device or configured_device(config),
        time_limit=settings["time_limit"],
        options=trainer_options(config) | {"max_epochs": settings["epochs"]},
        team=configured_team(config),
        transport=transport(settings["transport"]),
    )
    return Resident(module, adapter, client)


def configured_device(config: Mapping[str, Any]) -> str:
    """The one device of every client. Raises InputError for an accelerator that a client cannot have."""
    accelerator = config["trainer"].get("accelerator", "auto")
    if accelerator not in DEVICES:
        raise InputError(f"federation: expected trainer.accelerator of {', '.join(DEVICES)}, found {accelerator!r}")
    if DEVICES[accelerator].startswith("cuda") and not torch.cuda.device_count():
        raise InputError(f"federation: expected a GPU for trainer.accelerator={accelerator}, found none: take cpu")
    return DEVICES[accelerator]


def configured_team(config: Mapping[str, Any]) -> Team:
    """The processes that train each client together: those of torchrun where several devices are configured.

    Raises InputError where they are not there, or others than configured.
    """
    devices, machines = config["trainer"].get("devices", 1), config["trainer"].get("num_nodes", 1)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if devices == machines == world == 1:
        return ALONE
    if devices != world or machines != 1:
        found = f"trainer.devices={devices} on {machines} machine(s) and {world} process(es)"
        todo = f"start it with torchrun --nproc-per-node {devices} federate.py ..."
        raise InputError(f"federation: expected a process a device of one machine, found {found}: {todo}")
    return Team(int(os.environ["RANK"]), world)


def trainer_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a client's trainer takes of the configured one."""
    placed = ("accelerator", "devices", "num_nodes", "strategy")
    return {name: value for name, value in config["trainer"].items() if name not in placed}
