"""Reads the state dicts that the authors' released code writes into our modules, strictly.

A method's table says what each of our parameters is called there; `*` stands for a block number.
"""

import re
from dataclasses import dataclass

from torch import Tensor, nn

from datamodules.errors import InputError


@dataclass(frozen=True)
class ReleasedNames:
    """names: ours -> released, prefixes of parameter names. unused: released prefixes that our module leaves out."""

    names: dict[str, str]
    unused: tuple[str, ...]


_DSTA = {
    "encoder.stem": "input_map",
    "encoder.blocks.*.spatial.attention.query_key": "graph_layers.*.in_nets",
    "encoder.blocks.*.spatial.attention.alpha": "graph_layers.*.alphas",
    "encoder.blocks.*.spatial.attention.a0": "graph_layers.*.attention0s",
    "encoder.blocks.*.spatial.project": "graph_layers.*.out_nets",
    "encoder.blocks.*.spatial.feed_forward": "graph_layers.*.ff_nets",
    "encoder.blocks.*.spatial.shortcut1": "graph_layers.*.downs1",
    "encoder.blocks.*.spatial.shortcut2": "graph_layers.*.downs2",
    "encoder.blocks.*.temporal.attention.query_key": "graph_layers.*.in_nett",
    "encoder.blocks.*.temporal.attention.alpha": "graph_layers.*.alphat",
    "encoder.blocks.*.temporal.attention.a0": "graph_layers.*.attention0t",
    "encoder.blocks.*.temporal.project": "graph_layers.*.out_nett",
    "encoder.blocks.*.temporal.feed_forward": "graph_layers.*.ff_nett",
    "encoder.blocks.*.temporal.shortcut1": "graph_layers.*.downt1",
    "encoder.blocks.*.temporal.shortcut2": "graph_layers.*.downt2",
    "encoder.blocks.*.temporal.shortcut": "graph_layers.*.downt2",  # of the 7x1 convolution, the only one it has
}
# Positional codes are generated, the attention buffers hold zeros.
_DSTA_UNUSED = ("graph_layers.*.pes", "graph_layers.*.pet", "graph_layers.*.atts", "graph_layers.*.attt")

SDS_CL = ReleasedNames(
    names=_DSTA
    | {
        "siia.intra_spatial.query_key_value": "intra_satt.in_nets",
        "siia.intra_spatial.feed_forward": "intra_satt.ff_nets",
        "siia.intra_temporal.query_key_value": "intra_tatt.in_nett",
        "siia.intra_temporal.feed_forward": "intra_tatt.ff_nett",
        "siia.inter_spatial.query": "inter_satt.in_nets_q",
        "siia.inter_spatial.key_value": "inter_satt.in_nets_kv",
        "siia.inter_spatial.feed_forward": "inter_satt.ff_nets",
        "siia.inter_temporal.query": "inter_tatt.in_nett_q",
        "siia.inter_temporal.key_value": "inter_tatt.in_nett_kv",
        "siia.inter_temporal.feed_forward": "inter_tatt.ff_nett",
        "head": "mlp",
        "global_head": "mlpg",
    },
    unused=(*_DSTA_UNUSED, "fc"),  # pre-training has no classifier
)
PSP = ReleasedNames(
    names=_DSTA
    | {
        "ppa.body.query_key_value": "att_b.in_nets",
        "ppa.body.feed_forward": "att_b.ff_nets",
        "ppa.part.query_key_value": "att_pb.in_nets",
        "ppa.part.feed_forward": "att_pb.ff_nets",
        "ppa.joint.query_key_value": "att_jpb.in_nets",
        "ppa.joint.feed_forward": "att_jpb.ff_nets",
        "head": "mlp",
        "fc": "fc",
    },
    unused=_DSTA_UNUSED,
)


def _matches(prefix: str, key: str) -> re.Match | None:
    return re.fullmatch(re.escape(prefix).replace(r"\*", r"(?P<block>\d+)") + r"(?P<rest>\..+)?", key)


def released_name(key: str, names: dict[str, str]) -> str:
    """What the released code calls our parameter `key`; KeyError if the table `names` has no row for it."""
    for ours, theirs in names.items():
        if match := _matches(ours, key):
            return theirs.replace("*", match.groupdict().get("block", "")) + (match["rest"] or "")
    raise KeyError(f"no released name for our parameter {key}")


def _listed(keys: list[str], shown: int = 5) -> str:
    return ", ".join(keys[:shown]) + (f" and {len(keys) - shown} more" if len(keys) > shown else "")


def translate(released: dict[str, Tensor], module: nn.Module, table: ReleasedNames) -> dict[str, Tensor]:
    """Our state dict of `module` out of a released one; every key of either must find its partner and its shape.

    Counters of batch normalisation (`num_batches_tracked`) keep ours where the released state has none. Raises
    InputError that names the missing, unknown and mis-shaped keys.
    """
    ours = module.state_dict()
    partners = {key: released_name(key, table.names) for key in ours}
    counters = {key for key in ours if key.endswith("num_batches_tracked")}
    known = set(partners.values())
    missing = [name for key, name in partners.items() if name not in released and key not in counters]
    unknown = [name for name in released if name not in known and not any(_matches(u, name) for u in table.unused)]
    shapes = [
        f"{name} {tuple(released[name].shape)} for {tuple(ours[key].shape)}"
        for key, name in partners.items()
        if name in released and released[name].shape != ours[key].shape
    ]
    faults = {"missing": missing, "unknown": unknown, "of another shape": shapes}
    if found := "; ".join(f"{what}: {_listed(keys)}" for what, keys in faults.items() if keys):
        raise InputError(
            f"expected the released state dict of this very network, found keys {found}; "
            "build the encoder with the layers, subsets, frames and joints that the checkpoint was trained with"
        )
    return {key: released.get(name, ours[key]) for key, name in partners.items()}
