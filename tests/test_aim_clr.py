"""AimCLR: its three terms rebuilt by hand before and from the epoch of mining, its views, its published settings."""

from pathlib import Path

import pytest
import torch
import yaml
from mutants import Mutant, caught
from slow_aim_clr import slow_d3m, slow_drop, slow_mined
from toys_a2mc import clips, step, terms_of
from toys_clr import BODIES, FRAMES, aim_clr, double, skeleton_clr, with_near_keys

from lightning_modules.aim_clr import EXTREME_VIEW, AimCLR
from lightning_modules.encoders.st_gcn import ProjectedSTGCN
from lightning_modules.heads import pool
from lightning_modules.losses.info_nce import info_nce

CONF = Path(__file__).parents[1] / "conf"


def rebuilt(module, batch) -> dict[str, float]:
    """The terms from the slow readings, view by view."""
    first, second = module.views(batch)
    drawn = module.draw(module.extreme, len(first), EXTREME_VIEW)
    extreme = module.extreme.apply(batch.joints, drawn, batch.num_frames)
    network, key = module.encoders.query, module.encoders.key(second)
    features = network.encoder(extreme)
    vectors = [pool(part, BODIES) for part in (features, slow_drop(features.detach()))]
    queries = [network(first), *(torch.nn.functional.normalize(network.head(v), dim=1) for v in vectors)]
    positive = [(query * key).sum(1) for query in queries]
    negatives = [query @ module.queue.keys for query in queries]
    whole = [torch.cat([p[:, None], n], dim=1) for p, n in zip(positive, negatives, strict=True)]
    mining = module.place.epoch >= module.mine_from
    contrast = slow_mined(positive[0], negatives) if mining else info_nce(positive[0], negatives[0], 0.07).item()
    return {
        "contrast": contrast,
        "d3m_extreme": slow_d3m(whole[0], whole[1]) / 2,
        "d3m_dropped": slow_d3m(whole[0], whole[2]) / 2,
    }


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_terms_equal_those_rebuilt_from_the_slow_readings(epoch):
    """Mining begins at epoch 1."""
    module, batch = with_near_keys(aim_clr()), double(clips())
    module.place.epoch = epoch
    got = module.objective(batch)
    expected = rebuilt(module, batch)
    assert terms_of(got) == list(expected)
    assert {name: got[name].item() for name in expected} == pytest.approx(expected, rel=1e-8)
    assert abs(got["d3m_extreme"] - got["d3m_dropped"]) > 1e-3, "EADM drops something"


def test_mining_changes_the_contrast_alone():
    module, batch = with_near_keys(aim_clr()), double(clips())
    module.place.epoch = 1
    mining = module.objective(batch)
    module.mine_from = 2
    plain = module.objective(batch)
    assert mining["contrast"] != plain["contrast"]
    assert all(torch.equal(mining[name], plain[name]) for name in ("d3m_extreme", "d3m_dropped", "key"))


def test_without_its_extreme_view_it_is_skeleton_clr():
    module, parent, batch = with_near_keys(aim_clr()), with_near_keys(skeleton_clr()), double(clips())
    parent.load_state_dict(module.state_dict())
    got, expected = module.objective(batch), parent.objective(batch)
    assert torch.allclose(got["contrast"], expected["contrast"], rtol=1e-12) and torch.equal(
        got["key"], expected["key"]
    )


def test_extreme_view_has_numbers_of_its_own_and_the_stream_of_the_others():
    module, batch = aim_clr(stream="motion"), clips()
    extreme = module.seen(module.extreme, batch, EXTREME_VIEW)
    assert extreme.shape == (4, 3, FRAMES, 25, BODIES)
    shown = module.augmented(batch)
    assert list(shown) == ["query", "key", "extreme"] and torch.equal(shown["extreme"], extreme)
    assert (extreme[:, :, -1] == 0).all(), "the last frame of a motion stream"
    drawn = [module.draw(view, 4, number) for view, number in ((module.extreme, 2), (module.view, 0), (module.view, 1))]
    places = [draw[0]["place"] for draw in drawn]
    assert not torch.equal(places[0], places[1]) and not torch.equal(places[0], places[2])


def test_keys_come_from_the_normal_view():
    """The extreme view reaches neither key encoder nor queue."""
    module, batch = aim_clr().eval(), clips()
    outputs = module.objective(batch)
    assert torch.allclose(outputs["key"], module.encoders.key(module.views(batch)[1]))


def test_every_query_teaches_the_encoder():
    module, batch = with_near_keys(aim_clr()), double(clips())
    outputs = module.objective(batch)
    for name in terms_of(outputs):
        gradient = torch.autograd.grad(outputs[name], module.encoders.query.head[0].weight, retain_graph=True)[0]
        assert gradient.abs().max() > 1e-6, name


def test_a_step_with_mining_trains():
    module = aim_clr(dropout=0.5)
    module.place.epoch = 1
    outputs = step(module, module.configure_optimizers()["optimizer"], clips(), 0)
    assert all(value.isfinite().all() for value in outputs.values())


def test_published_settings():
    config = yaml.safe_load((CONF / "method" / "aim_clr.yaml").read_text())
    assert config["defaults"] == ["skeleton_clr", "_self_"]
    assert (config["method"]["mine_from"], config["method"]["threshold"]) == (150, 0.7)
    assert "stream" not in config, "SkeletonCLR's, for all three views"


# ---- mutants


def errors() -> dict[str, float]:
    """Relative error of each term, with and without mining."""
    found = {}
    for epoch in (0, 1):
        module, batch = with_near_keys(aim_clr()), double(clips())
        module.place.epoch = epoch
        got, expected = module.objective(batch), rebuilt(module, batch)
        found |= {f"{name} {epoch}": abs(got[name].item() / value - 1) for name, value in expected.items()}
    return found


MUTANTS = [
    Mutant("mining from the start", AimCLR, "terms", "& (self.place.epoch >= self.mine_from)", "& True"),
    Mutant("mining an epoch late", AimCLR, "terms", "self.place.epoch >= self", "self.place.epoch > self"),
    Mutant("the normal view mines alone", AimCLR, "terms", "nearest(negatives)", "nearest(negatives[:1])"),
    Mutant("contrast of the extreme view", AimCLR, "terms", "mined_info_nce(positives[0], negatives[0]",
           "mined_info_nce(positives[1], negatives[1]"),
    Mutant("divergence of weight 1", AimCLR, "terms", "d3m(normal, extreme, self.temperature) / 2",
           "d3m(normal, extreme, self.temperature)"),
    Mutant("dropped against extreme", AimCLR, "terms", "d3m(normal, dropped,", "d3m(extreme, dropped,"),
    Mutant("distribution without the key", AimCLR, "terms", "torch.cat([positive[:, None], others], dim=1)", "others"),
    Mutant("nothing dropped", AimCLR, "queries", "energy_drop(features, self.threshold)", "features"),
    Mutant("the normal view dropped", AimCLR, "queries", "energy_drop(features", "energy_drop(network.encoder(clips)"),
    Mutant("the numbers of the query view", AimCLR, "objective", "batch, EXTREME_VIEW)", "batch, 0)"),
    Mutant("no unit length", ProjectedSTGCN, "project", "unit(self.head(pool(features, bodies)))",
           "self.head(pool(features, bodies))"),
]  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_rebuilt_terms_notice(mutant, monkeypatch):
    caught(mutant, errors, monkeypatch)
