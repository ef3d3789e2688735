"""A trained adapter as a PEFT folder: `PeftModel.from_pretrained(base, folder)` computes what the federation's did."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file

from datamodules.errors import InputError
from federated.ledger import to_disk
from federated.state import State
from federated.svd_start import lora_pairs

WEIGHTS = "adapter_model.safetensors"


def peft_model(module: pl.LightningModule) -> PeftModel:
    """The one PEFT model inside a module. Raises InputError unless there is exactly one."""
    found = [part for part in module.modules() if isinstance(part, PeftModel)]
    if len(found) != 1:
        raise InputError(f"export: expected one PEFT model in {type(module).__name__}, found {len(found)}")
    return found[0]


def export(module: pl.LightningModule, folder: Path, initial: State, current: State, taken: State) -> None:
    """Write the adapter that the module holds, whole or not at all; a folder that is there is replaced.

    initial, current: exchanged state at the federation's start and now (the module holds `current`).
    taken: factors whose product was subtracted from the frozen weights (`SVDStart`). Where there are some, the folder
    holds pairs of twice the rank, [B, B0] and [A; -A0]: the user's frozen model has not been corrected.
    Raises InputError for an adapter that was never trained: no tensor differs from its start.
    """
    if all(torch.equal(current[name], initial[name]) for name in initial):
        raise InputError("export: expected a trained adapter, found every tensor as at its start; train it first")
    model = peft_model(module)
    half_written = folder.with_name(folder.name + ".writing")
    shutil.rmtree(half_written, ignore_errors=True)
    model.save_pretrained(str(half_written))
    if taken:
        _write_doubled(model, half_written, taken)
    for path in half_written.rglob("*"):
        to_disk(path)
    shutil.rmtree(folder, ignore_errors=True)
    half_written.rename(folder)


def _write_doubled(model: PeftModel, folder: Path, taken: State) -> None:
    """B A - B0 A0 as one pair of twice the rank in place of every pair whose start was taken from its weight."""
    scalings = {pair.scaling for pair in lora_pairs(model)}
    if len(scalings) > 1:
        raise InputError(f"export: expected one LoRA scaling for all layers, found {sorted(scalings)}")
    state = get_peft_model_state_dict(model)
    for key, begun in taken.items():
        name = next(name for name in state if f".{key}".endswith(f".{name}"))
        pair = [state[name].cpu(), -begun] if ".lora_A" in name else [state[name].cpu(), begun]
        state[name] = torch.cat(pair, dim=0 if ".lora_A" in name else 1)
    save_file({name: tensor.cpu().contiguous() for name, tensor in state.items()}, folder / WEIGHTS, {"format": "pt"})
    config: Any = copy.deepcopy(model.peft_config[model.active_adapter])
    config.inference_mode = True
    config.r, config.use_rslora = 2 * config.r, False
    config.lora_alpha = scalings.pop() * config.r
    config.save_pretrained(str(folder))
