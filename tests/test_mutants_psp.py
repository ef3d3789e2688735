"""One change at a time to PSP, each of which the comparison with the released values must notice."""

import pytest
from goldens_psp import compare
from mutants import Mutant, caught

from lightning_modules.attention import ppa
from lightning_modules.attention.ppa import PPA, LevelAttention
from lightning_modules.psp import PSP

APART = "torch.cat([self.encoder(stream) for stream in streams])"
SIDES_APART = "torch.cat([self.encoder(torch.cat(side)) for side in (streams[:2], streams[2:])])"
ONE_A_STREAM = """(
        once(self.ppa, self.ppa, kinds, stream) for kinds, stream in zip(rows, (joint, motion), strict=True)
    )"""
AT_ONCE = "zip(*(level.chunk(2) for level in self.ppa(torch.cat([joint, motion]))))"

MUTANTS = [
    Mutant("body map detached", PPA, "_levels", "broadcast(body_map,", "broadcast(body_map.detach(),"),
    Mutant("part map detached", PPA, "onto_joints", "* part_map", "* part_map.detach()"),
    Mutant("P after B", PPA, "_levels", "self.onto_joints(part_map,", "self.onto_joints(part_map + onto_parts,"),
    Mutant("PPA over both streams at once", PSP, "views", ONE_A_STREAM, AT_ONCE),
    Mutant("one pass a stream", PSP, "backbone", "self.encoder(torch.cat(streams))", APART),
    Mutant("labelled and unlabelled apart", PSP, "backbone", "self.encoder(torch.cat(streams))", SIDES_APART),
    Mutant("scale without T", ppa, "head_maps", "queries.shape[2] * queries.shape[3]", "queries.shape[2]"),
    Mutant("transposed attention", LevelAttention, "forward", "attend(used,", "attend(used.transpose(-1, -2),"),
    Mutant("broadcast before the tanh", LevelAttention, "forward", "own + coarser", "(own.atanh() + coarser).tanh()"),
    Mutant("coefficient by groups", ppa, "coefficient", "len(membership)", "membership.shape[1]"),
    Mutant("sum over members", ppa, "_mean", " / membership.sum(0)", ""),
    Mutant("head without its ReLU", PSP, "terms", "self.head(level)", "self.head[2](self.head[0](level))"),
    Mutant("another weight", PSP, "__init__", "weight: float = 0.2", "weight: float = 0.25"),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_change_is_noticed(mutant, monkeypatch):
    caught(mutant, compare, monkeypatch)
