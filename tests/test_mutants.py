"""SDS-CL with one thing changed at a time: every change must show in the comparison with the released values."""

from functools import partial

import pytest
from goldens_sds_cl import compare, compare_streams
from mutants import Mutant, caught

from lightning_modules import sds_cl
from lightning_modules.attention import siia
from lightning_modules.attention.siia import HeadAttention, InterAttention
from lightning_modules.encoders import dsta
from lightning_modules.encoders.dsta import AttentionStage, SubsetAttention
from lightning_modules.losses import gl, pairings, stl, tsl
from lightning_modules.sds_cl import SDSCL
from lightning_modules.two_streams import TwoStreamModule

MASK = "logits = logits.masked_fill(anchors[:, None] == anchors, -torch.inf)"

ENCODER = [
    Mutant("spatial scale without T", SubsetAttention, "maps", "/ (self.inner * length)",
           "/ (self.inner * (1 if positions == 25 else length))"),
    Mutant("temporal scale without V", SubsetAttention, "maps", "/ (self.inner * length)",
           "/ (self.inner * (length if positions == 25 else 1))"),
    Mutant("scale without the inner width", SubsetAttention, "maps", "/ (self.inner * length)", "/ length"),
    Mutant("transposed attention", SubsetAttention, "forward", "bclu,bsuv->bsclv", "bclv,bsuv->bsclu"),
    Mutant("values with position", SubsetAttention, "forward", "x, self.maps(x)", "x + self.code, self.maps(x)"),
    Mutant("queries and keys without position", SubsetAttention, "maps", "x + self.code", "x"),
    Mutant("alpha inside the tanh", SubsetAttention, "maps", "self.alpha * scores.tanh()",
           "(self.alpha * scores).tanh()"),
    Mutant("a0 left out", SubsetAttention, "maps", "maps if self.a0 is None else self.a0 + maps", "maps"),
    Mutant("softmax for tanh", SubsetAttention, "maps", "scores.tanh()", "scores.softmax(-1)"),
    Mutant("queries and keys interleaved by subset", SubsetAttention, "maps",
           "reshape(batch, 2, self.subsets, self.inner * length, positions)",
           "reshape(batch, self.subsets, 2, self.inner * length, positions).transpose(1, 2)"),
    Mutant("subsets side by side inside a channel", SubsetAttention, "forward", "->bsclv", "->bcslv"),
    Mutant("code in halves", dsta, "positional_code", "torch.stack([angle.sin(), angle.cos()], dim=1).flatten(0, 1)",
           "torch.cat([angle.sin(), angle.cos()])"),
    Mutant("code with another rate", dsta, "positional_code", "(-even / channels)", "(-even / (channels - 2))"),
    Mutant("no second shortcut", AttentionStage, "forward", "skip = self.shortcut2(x)", "skip = 0"),
    Mutant("stride inside the temporal attention", AttentionStage, "__init__",
           "out_channels)\n    self.feed_forward = conv_bn(out_channels, out_channels, stride=(1, stride))\n"
           "    self.shortcut1 = _shortcut(in_channels, out_channels, learnt)",
           "out_channels, stride=(1, stride))\n    self.feed_forward = conv_bn(out_channels, out_channels)\n"
           "    self.shortcut1 = _shortcut(in_channels, out_channels, learnt, (1, stride))"),
    Mutant("another slope", dsta, "leaky_", "0.1", "0.01"),
    Mutant("one backbone pass per stream", TwoStreamModule, "backbone", "self.encoder(torch.cat(streams))",
           "torch.cat([self.encoder(stream) for stream in streams])"),
]  # fmt: skip

ATTENTION = [
    Mutant("scale without T or V", siia, "head_maps", "queries.shape[2] * queries.shape[3]", "queries.shape[2]"),
    Mutant("scale without the head width", siia, "head_maps", "queries.shape[2] * queries.shape[3]",
           "queries.shape[3]"),
    Mutant("tanh left out", siia, "head_maps", ".tanh()", ""),
    Mutant("sum over the query index", siia, "attend", "maps.transpose(-1, -2)", "maps"),
    Mutant("inter attention on the own stream", InterAttention, "heads", "self.key_value(other)", "self.key_value(x)"),
    Mutant("queries of the other stream", InterAttention, "heads", "self.query(x)", "self.query(other)"),
    Mutant("keys and values exchanged", InterAttention, "heads", "keys, values = ", "values, keys = "),
    Mutant("residual left out", HeadAttention, "forward", ".add_(x)", ""),
    Mutant("residual of the other stream", HeadAttention, "forward", ".add_(x)", ".add_(other)"),
    Mutant("both streams through SIIA at once", SDSCL, "views",
           "own, others = once(self.siia, self.siia, rows, joint, motion), "
           "once(self.siia, self.siia, rows, motion, joint)",
           "import torch\n"
           "    both = self.siia(torch.cat([joint, motion]), torch.cat([motion, joint]))\n"
           "    own, others = (Decoupled(*half) for half in zip(*(part.chunk(2) for part in both)))"),
]  # fmt: skip

LOSSES = [
    Mutant("order inside GL", sds_cl, "squeeze_all",
           "attended = (temporal_intra, spatial_intra, temporal_inter, spatial_inter)",
           "attended = (temporal_intra, temporal_inter, spatial_intra, spatial_inter)"),
    Mutant("bodies folded before the sample", sds_cl, "squeeze_space", "(-1, bodies)).mean(dim=(1, 4))",
           "(bodies, -1)).mean(dim=(0, 4))"),
    Mutant("frames from the temporal attention", sds_cl, "squeeze", "squeeze_space(attended.spatial_intra, bodies)",
           "squeeze_space(attended.temporal_intra, bodies)"),
    Mutant("joints from the spatial attention", sds_cl, "squeeze", "squeeze_time(attended.temporal_inter, bodies)",
           "squeeze_time(attended.spatial_inter, bodies)"),
    Mutant("anchor in the denominator of STL and TSL", pairings, "nt_xent", MASK, ""),
    Mutant("anchor in the denominator of GL", gl, "nt_xent", MASK, ""),
    Mutant("products for cosines", pairings, "nt_xent", "F.normalize(torch.cat([a, b], dim=1), dim=-1)",
           "torch.cat([a, b], dim=1)"),
    Mutant("anchors of one stream only", pairings, "nt_xent",
           "logits.flatten(0, 1), twins.repeat(a.shape[0])",
           "logits[:, : a.shape[1]].flatten(0, 1), twins[: a.shape[1]].repeat(a.shape[0])"),
    Mutant("pairings within a stream", stl, "paired_nt_xent",
           "right = torch.cat([intra_motion, inter_motion, inter_joint, inter_motion])",
           "right = torch.cat([intra_motion, inter_joint, inter_motion, inter_motion])"),
    Mutant("mean of the pairings", tsl, "paired_nt_xent", "4 * nt_xent", "nt_xent"),
    Mutant("STL without the head", SDSCL, "terms", "head(joint.intra_frames)", "joint.intra_frames"),
    Mutant("joints of the other stream", SDSCL, "terms", "head(motion.inter_joints)",
           "head(joint.inter_joints)"),
    Mutant("GL of the stream with itself", SDSCL, "terms", "global_head(motion.clip)", "global_head(joint.clip)"),
]  # fmt: skip

SAMPLING = [
    Mutant("joint and motion sampled together", TwoStreamModule, "streams", "view + 1", "view"),
    Mutant("motion of the sampled frames", TwoStreamModule, "streams", "motion = motion_stream(joint, num_frames)",
           "motion = joint.roll(-1, 2) - joint"),
]  # fmt: skip


@pytest.mark.parametrize("mutant", ENCODER + ATTENTION + LOSSES, ids=lambda mutant: mutant.name)
def test_the_released_values_notice(mutant, monkeypatch):
    caught(mutant, partial(compare, "sds_cl_temporal"), monkeypatch)


@pytest.mark.parametrize("mutant", SAMPLING, ids=lambda mutant: mutant.name)
def test_the_released_clips_notice(mutant, monkeypatch):
    caught(mutant, compare_streams, monkeypatch)


def test_a_harmless_change_is_not_called_a_mutant(monkeypatch):
    harmless = Mutant("order", SubsetAttention, "maps", "self.alpha * scores.tanh()", "scores.tanh() * self.alpha")
    with pytest.raises(AssertionError, match="nothing notices order"):
        caught(harmless, partial(compare, "sds_cl_temporal"), monkeypatch)


def test_a_row_that_no_longer_fits_the_code_fails(monkeypatch):
    with pytest.raises(AssertionError, match="stands 0 times"):
        Mutant("of other code", SubsetAttention, "maps", "no such line", "").apply(monkeypatch)
