"""State dicts of the authors' code: read whole, or refused with the names of what does not fit."""

import os

import pytest
import torch
from goldens import read
from goldens_sds_cl import LAYERS, released_state
from toys import ToyMethod

from datamodules.errors import InputError
from lightning_modules.encoders.dsta import DSTANet
from lightning_modules.fitting import is_released, load_weights, weights_digest
from lightning_modules.released_checkpoints import PSP, SDS_CL, released_name, translate
from lightning_modules.schedules import Constant
from lightning_modules.sds_cl import SDSCL


@pytest.fixture
def module() -> SDSCL:
    return SDSCL(DSTANet("ntu25", LAYERS, subsets=2, num_frames=12), torch.optim.SGD, Constant(), seed=0)


@pytest.fixture
def released() -> dict[str, torch.Tensor]:
    return released_state(read("sds_cl"))


def test_a_file_fills_every_parameter_and_running_statistic(module, released, tmp_path):
    counter = "input_map.1.num_batches_tracked"
    torch.save(released | {counter: torch.tensor(7)}, tmp_path / "released.pt")
    load_weights(module, tmp_path / "released.pt")
    ours = module.state_dict()
    assert torch.equal(ours["encoder.blocks.1.spatial.attention.a0"], released["graph_layers.1.attention0s"])
    assert ours["encoder.stem.1.num_batches_tracked"] == 7  # what else of the counters is missing stays 0
    assert ours["siia.inter_spatial.feed_forward.1.num_batches_tracked"] == 0
    filled = {released_name(name, SDS_CL.names) for name in ours}
    left_out = {name for name in released if name.endswith((".pe", ".atts", ".attt")) or name.startswith("fc.")}
    assert set(released) - filled == left_out
    for name, value in ours.items():
        partner = released_name(name, SDS_CL.names)
        assert partner == counter or partner not in released or torch.equal(value, released[partner])


def test_no_two_of_our_parameters_share_a_released_name(module):
    names = [released_name(name, SDS_CL.names) for name in module.state_dict()]
    assert len(set(names)) == len(names)


def test_missing_unknown_and_misshaped_keys_are_named_at_once(module, released):
    del released["intra_satt.in_nets.bias"]
    released["graph_layers.3.alphas"] = torch.ones(1, 2, 1, 1)
    released["mlp.0.weight"] = torch.ones(4, 4)
    with pytest.raises(InputError) as refusal:
        translate(released, module, SDS_CL)
    message = str(refusal.value)
    assert "missing: intra_satt.in_nets.bias" in message
    assert "unknown: graph_layers.3.alphas" in message
    assert "of another shape: mlp.0.weight (4, 4) for (16, 16)" in message
    assert "\n" not in message


def test_a_network_of_other_layers_is_refused_and_stays_as_it_was(released, tmp_path):
    torch.save(released, tmp_path / "released.pt")
    deeper = SDSCL(DSTANet("ntu25", [*LAYERS, LAYERS[2]], 2, 12), torch.optim.SGD, Constant(), seed=0)
    before = {name: value.clone() for name, value in deeper.state_dict().items()}
    with pytest.raises(InputError, match=r"missing: graph_layers\.3\..* and \d+ more"):
        load_weights(deeper, tmp_path / "released.pt")
    assert all(torch.equal(before[name], value) for name, value in deeper.state_dict().items())


class Payload:
    def __reduce__(self):
        return os.mkdir, ("made_by_a_checkpoint",)


@pytest.mark.parametrize("content", [Payload(), {"input_map.0.weight": Payload()}])
def test_nothing_but_tensors_is_unpickled(module, content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "released.pt")
    with pytest.raises(InputError, match="released.pt (cannot be read as a checkpoint|holds no state_dict)"):
        load_weights(module, tmp_path / "released.pt")
    assert not (tmp_path / "made_by_a_checkpoint").exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_a_file_that_is_none_is_an_error_in_one_line(module, content, tmp_path):
    path = tmp_path / "released.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="released.pt (cannot be read as a checkpoint|holds no state_dict)") as refusal:
        load_weights(module, path)
    assert "\n" not in str(refusal.value)


def test_another_object_is_refused(module, tmp_path):
    torch.save([torch.ones(2)], tmp_path / "released.pt")
    with pytest.raises(InputError, match="holds no state_dict: expected a checkpoint"):
        load_weights(module, tmp_path / "released.pt")


def test_the_names_of_psp_cover_its_released_state():
    golden = released_state(read("psp"))
    known = (*PSP.names.values(), *PSP.unused)
    patterns = [name.replace("*", name_of_block) for name in known for name_of_block in "012"]
    assert [name for name in golden if not any(name == p or name.startswith(f"{p}.") for p in patterns)] == []


def test_ours_and_theirs_are_told_apart_and_have_the_weights_of_their_file(module, released, tmp_path):
    torch.save(released, tmp_path / "theirs.pt")
    load_weights(module, tmp_path / "theirs.pt")
    torch.save({"state_dict": module.state_dict()}, tmp_path / "ours.ckpt")
    assert is_released(tmp_path / "theirs.pt") and not is_released(tmp_path / "ours.ckpt")
    assert weights_digest(tmp_path / "theirs.pt") != weights_digest(tmp_path / "ours.ckpt")
    other = SDSCL(DSTANet("ntu25", LAYERS, 2, 12), torch.optim.SGD, Constant(), seed=1)
    load_weights(other, tmp_path / "ours.ckpt")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in module.state_dict().items())


def test_a_method_without_released_names_reads_none(released, tmp_path):
    torch.save(released, tmp_path / "theirs.pt")
    with pytest.raises(
        InputError, match=r"theirs.pt: expected a checkpoint .* ToyMethod has no table of released names"
    ):
        load_weights(ToyMethod(), tmp_path / "theirs.pt")
