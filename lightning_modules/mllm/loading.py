"""A family's model made ready to be tuned: quantised, with LoRA, and nothing else trained than what is named."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from datamodules.errors import InputError
from lightning_modules.mllm.families.base import DTYPES, Family

# int8 layers announce at every product that they compute in float16.
logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)

QUANTISATIONS = ("none", "nf4", "int8")


@dataclass(frozen=True)
class Lora:
    """Low-rank pairs on q, k, v, o of every layer of the language model (FedMLLM: r 8, alpha 8, dropout .05).

    matrices: which of the four; last_layers: only in so many of the last layers, None: all (YOCO: q in the last one).
    """

    rank: int = 8
    alpha: int = 8
    dropout: float = 0.05
    matrices: Sequence[str] = ("q", "k", "v", "o")
    last_layers: int | None = None

    def targets(self, model: nn.Module, family: Family) -> list[str]:
        """Names of the modules that get a pair. Raises InputError where these are none."""
        reached = [name for name, _ in model.named_modules() if re.fullmatch(family.lora_targets, name)]
        layer = {name: int(re.findall(r"\.(\d+)\.", name)[-1]) for name in reached}
        kept = sorted(set(layer.values()))[-self.last_layers if self.last_layers else None :]
        chosen = [name for name in reached if layer[name] in kept and name.rpartition(".")[2][0] in self.matrices]
        if not chosen:
            told = f"modules named {family.lora_targets}, of them {', '.join(self.matrices)}"
            raise InputError(f"model: expected {told} in {type(model).__name__}, found none; mend the regex")
        return chosen


def frozen_model(family: Family, quantization: str = "none", gradient_checkpointing: bool = False) -> PreTrainedModel:
    """The family's model with every parameter frozen.

    quantization: of the language model through bitsandbytes, nf4 with double quantisation or int8; vision tower,
    projector and head keep their precision. gradient_checkpointing: forget activations, compute them again.
    Raises InputError for another quantisation.
    """
    if quantization not in QUANTISATIONS:
        raise InputError(f"model: expected quantization of {', '.join(QUANTISATIONS)}, found {quantization!r}")
    # The reentrant kind gives no gradient where the inputs of a layer need none, and here the embeddings are frozen.
    checkpointing = {"use_reentrant": False}
    if quantization == "none":
        model = family.load().requires_grad_(False)
        if gradient_checkpointing:
            model.gradient_checkpointing_enable(checkpointing)
        return model
    skipped = list(family.unquantised)
    if quantization == "nf4":
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=DTYPES[family.dtype],
            llm_int8_skip_modules=skipped,
        )
    else:
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return prepare_model_for_kbit_training(
        family.load(quantization_config=config),
        use_gradient_checkpointing=gradient_checkpointing,
        gradient_checkpointing_kwargs=checkpointing,
    )


def with_lora(model: PreTrainedModel, family: Family, lora: Lora, also_train: Sequence[str], seed: int) -> nn.Module:
    """The model as a PeftModel that trains LoRA pairs and the `also_train` parts (names in `family.parts`).

    The first factors A are drawn by `seed`, B starts at 0: the model answers as before.
    Raises InputError for a part the family does not know, and where the regex reaches no layer.
    """
    if unknown := sorted(set(also_train) - set(family.parts)):
        raise InputError(f"model: expected also_train of {', '.join(family.parts)}, found {unknown[0]!r}")
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules=lora.targets(model, family),
        modules_to_save=[family.parts[part] for part in also_train] or None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config)
