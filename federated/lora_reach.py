"""Where a module's LoRA pairs are: a language model of which most layers lack q, k, v, o is tuned in few of them."""

import re

from torch import nn


def lora_reach(module: nn.Module) -> str:
    """`4 modules in 1 of 4 layers`, of all layers of the stacks that hold a pair; empty without a pair."""
    reached = [name.removesuffix(".lora_A") for name, _ in module.named_modules() if name.endswith(".lora_A")]
    if not reached:
        return ""
    layers = {found.groups() for name in reached if (found := re.match(r"(.*)\.(\d+)(?:\.|$)", name))}
    stacks = {stack for stack, _ in layers}
    depth = sum(len(list(module.get_submodule(stack).children())) for stack in stacks)
    return f"{len(reached)} module{'s' * (len(reached) > 1)} in {len(layers)} of {depth} layers"
