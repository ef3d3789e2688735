"""An exported adapter computes the same in a fresh model, and one that was never trained is refused."""

import numpy as np
import pytest
import torch
from peft import PeftModel
from toy_federation import federation
from toy_lora import LAST_QUERY, Sequences, ToyLoRA, base

from datamodules.errors import InputError
from federated.data import PartitionedData
from federated.export import WEIGHTS, export
from federated.svd_start import SVDStart


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=Sequences().tokens).logits


def trained(start=None, **options):
    """The module after a round, its state before and after it, and what the start took from the frozen weights."""
    module = ToyLoRA(**options)
    taken = start(module) if start else {}
    pieces = [np.arange(16), np.arange(16, 32)]
    orchestrator = federation(module, pieces, data=PartitionedData(Sequences(), pieces, batch_size=4))
    initial = orchestrator.adapter.extract()
    orchestrator.run()
    return module, initial, orchestrator.adapter.extract(), taken


@pytest.mark.parametrize("start", [None, SVDStart()], ids=["plain", "corrected base"])
@pytest.mark.parametrize("alpha", [4, 12])
def test_a_folder_that_peft_loads_to_the_same_logits(tmp_path, start, alpha):
    module, initial, current, taken = trained(start, alpha=alpha)
    export(module, tmp_path / "adapter", initial, current, taken)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]
    loaded = PeftModel.from_pretrained(base(), tmp_path / "adapter")
    found, expected = logits(loaded), logits(module.model)
    assert torch.allclose(found, expected, rtol=0, atol=2e-6 if start else 0)
    assert (found - logits(base())).abs().max() > 1e-2


def test_an_uncorrected_svd_start_is_exported_as_it_is(tmp_path):
    module, *states = trained(SVDStart(correct_base=False), targets=LAST_QUERY)
    export(module, tmp_path / "adapter", *states)
    assert torch.equal(logits(PeftModel.from_pretrained(base(), tmp_path / "adapter")), logits(module.model))


def test_an_untrained_adapter_is_refused_and_nothing_is_written(tmp_path):
    module, initial, *_ = trained()
    with pytest.raises(InputError, match="expected a trained adapter, found every tensor as at its start"):
        export(module, tmp_path / "adapter", initial, initial, {})
    assert not list(tmp_path.iterdir())


def test_an_older_export_is_replaced_whole(tmp_path):
    module, *states = trained()
    (tmp_path / "adapter.writing").mkdir()
    (tmp_path / "adapter").mkdir()
    for folder in ("adapter", "adapter.writing"):
        (tmp_path / folder / "left over").write_text("x")
    export(module, tmp_path / "adapter", *states)
    assert (tmp_path / "adapter" / WEIGHTS).exists() and not (tmp_path / "adapter" / "left over").exists()
    assert not (tmp_path / "adapter.writing").exists()


def test_a_module_without_an_adapter_is_refused(tmp_path):
    module, *states = trained()
    module.model = base()
    with pytest.raises(InputError, match="one PEFT model in ToyLoRA, found 0"):
        export(module, tmp_path / "adapter", *states)
