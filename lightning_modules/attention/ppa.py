"""PPA, the pyramid polymerising attention of PSP Learning: body, part and joint maps, the finer on the coarser."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from datamodules.topology import TOPOLOGIES
from lightning_modules.attention.siia import attend, head_maps
from lightning_modules.layers import conv, conv_bn, leaky_


class Pyramid(NamedTuple):
    """One tensor a level, coarse to fine."""

    body: Tensor
    part: Tensor
    joint: Tensor


def broadcast(coarse: Tensor, membership: Tensor) -> Tensor:
    """Maps between groups (B, S, G, G) -> maps between their members (B, S, F, F), head by head.

    membership: (F, G), a one where finer unit f belongs to group g.
    """
    return torch.einsum("bsgh,ug,vh->bsuv", coarse, membership, membership)


def coefficient(membership: np.ndarray) -> float:
    """Weight of a coarser map in a finer one: largest group / number of finer units (methods §5.1)."""
    return float(membership.sum(0).max()) / len(membership)


class LevelAttention(nn.Module):
    """Attention over the last axis of (B, C, T, P), in S heads of d = C / S channels, one map for all of T.

    own = tanh(sum_{c, t} q[u] k[v] / (d T)); out = LeakyReLU(x + BN conv1x1 [sum_v (own + coarser)[u, v] v[v]]).
    """

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.num_heads = heads
        self.query_key_value = conv(channels, 3 * channels)
        self.feed_forward = conv_bn(channels, channels)

    def forward(self, x: Tensor, coarser: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Output (B, C, T, P) and own map (B, S, P, P), query index first; coarser: added to it after the tanh."""
        queries, keys, values = self.query_key_value(x).unflatten(1, (3, self.num_heads, -1)).unbind(1)
        own = head_maps(queries, keys)
        used = own if coarser is None else own + coarser
        return leaky_(self.feed_forward(attend(used, values)).add_(x)), own


class PPA(nn.Module):
    """Pyramid polymerising attention over backbone features (B, C, T, V) of one stream (methods §5.1).

    body: 5 groups of joints. part: 10 groups, map + .2 body map. joint: map + .12 part map + .24 body map, where the
    part map is the one before the body map was added. Gradients flow through the coarser maps.
    Body and part features are means over member joints; a call keeps to one stream, so batch statistics are its own.

    topology: name of the skeleton in `datamodules.topology`, which has the groups.
    channels, heads: C and S. Raises ValueError if S does not divide C.
    """

    joint_in_body: Tensor
    joint_in_part: Tensor
    part_in_body: Tensor

    def __init__(self, topology: str, channels: int, heads: int):
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels do not divide into {heads} heads")
        self.body, self.part, self.joint = (LevelAttention(channels, heads) for _ in range(3))
        skeleton = TOPOLOGIES[topology]
        # Numpy decides the coefficients, so that a module on the meta device has them too.
        body, part = skeleton.membership(skeleton.body_groups).T, skeleton.membership(skeleton.part_groups).T
        part_in_body = (part.T @ body > 0).astype(part.dtype)
        self.body_in_part = coefficient(part_in_body)  # .2, .24 and .12 for 25 joints
        self.body_in_joint = coefficient(body)
        self.part_in_joint = coefficient(part)
        self.register_buffer("joint_in_body", torch.tensor(body), persistent=False)
        self.register_buffer("joint_in_part", torch.tensor(part), persistent=False)
        self.register_buffer("part_in_body", torch.tensor(part_in_body), persistent=False)

    def forward(self, x: Tensor) -> Pyramid:
        """Attended features (B, C, T, units) of the three levels."""
        return self._levels(x)[0]

    def maps(self, x: Tensor) -> Pyramid:
        """(B, S, units, units) polymerised maps of the three levels, query index first."""
        return self._levels(x)[1]

    def onto_joints(self, part_map: Tensor, body_on_parts: Tensor) -> Tensor:
        """(B, S, V, V) what the joint map gains, of the part map and the body map broadcast to parts (B, S, 10, 10).

        Parts lie within body groups, so that one broadcast serves both.
        """
        return broadcast(self.part_in_joint * part_map + self.body_in_joint * body_on_parts, self.joint_in_part)

    def _levels(self, x: Tensor) -> tuple[Pyramid, Pyramid]:
        body, body_map = self.body(x @ _mean(self.joint_in_body))
        body_on_parts = broadcast(body_map, self.part_in_body)
        onto_parts = self.body_in_part * body_on_parts
        part, part_map = self.part(x @ _mean(self.joint_in_part), onto_parts)
        onto_joints = self.onto_joints(part_map, body_on_parts)
        joint, joint_map = self.joint(x, onto_joints)
        return Pyramid(body, part, joint), Pyramid(body_map, part_map + onto_parts, joint_map + onto_joints)


def _mean(membership: Tensor) -> Tensor:
    """(units, groups) weights that average the members of each group."""
    return membership / membership.sum(0)
