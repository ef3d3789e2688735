"""One-shot: the start at the SVD of the frozen weight, its terms, and one round from start to mean."""

import numpy as np
import pytest
import torch
from toy_federation import federation, same
from toy_lora import LAST_QUERY, Sequences, ToyLoRA, base

from datamodules.errors import InputError
from federated.adapter import Adapter
from federated.data import PartitionedData
from federated.strategies.one_shot import OneShot
from federated.svd_start import SVDStart, lora_pairs
from federated.terms import Orthogonality, SignAgreement, Sparsity


def logits(module) -> torch.Tensor:
    module.eval()
    with torch.no_grad():
        return module.model(input_ids=Sequences().tokens).logits


def test_the_factors_are_the_best_approximation_of_rank_r():
    module = ToyLoRA()
    before = {pair.name: pair.base.weight.clone() for pair in lora_pairs(module)}
    SVDStart(correct_base=False)(module)
    assert len(before) == 8
    for pair in lora_pairs(module):
        a, b, w = pair.a, pair.b, before[pair.name]
        assert torch.equal(pair.base.weight, w)
        values = torch.linalg.svdvals(w)
        # Eckart-Young: nothing of rank 4 is nearer, and the rest is what the smaller singular values hold.
        assert torch.isclose((w - b @ a).norm(), values[4:].norm(), rtol=1e-4)
        # Each factor takes the root of the singular values.
        assert torch.allclose(b.T @ b, values[:4].diag(), atol=1e-5)
        assert torch.allclose(a @ a.T, values[:4].diag(), atol=1e-5)


@pytest.mark.parametrize("alpha", [4, 12])
def test_a_corrected_base_begins_as_the_model_was(alpha):
    untouched = logits(ToyLoRA(alpha=alpha))
    corrected, plain = ToyLoRA(alpha=alpha), ToyLoRA(alpha=alpha)
    assert SVDStart()(corrected) and not SVDStart(correct_base=False)(plain)
    assert torch.allclose(logits(corrected), untouched, atol=1e-5)
    assert (logits(plain) - untouched).abs().max() > 1e-3


def test_as_released_only_b_starts_at_the_svd():
    module, before = ToyLoRA(LAST_QUERY), Adapter(ToyLoRA(LAST_QUERY)).extract()
    SVDStart(factors="B", correct_base=False)(module)
    a, b = sorted(before)
    after = Adapter(module).extract()
    assert "lora_A" in a and torch.equal(after[a], before[a]) and not torch.equal(after[b], before[b])


def test_mistakes_are_told():
    with pytest.raises(InputError, match="factors both or B, found 'A'"):
        SVDStart(factors="A")
    with pytest.raises(InputError, match="expected LoRA pairs, found none"):
        SVDStart()(base())


def test_a_quantised_weight_takes_no_correction(monkeypatch):
    module = ToyLoRA(LAST_QUERY)
    (pair,) = lora_pairs(module)
    weight = pair.base.weight.detach().clone()
    codes = torch.nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)
    monkeypatch.setattr("federated.svd_start.dequantize_module_weight", lambda base: weight)
    pair.base.weight = codes
    with pytest.raises(InputError, match="q_proj, found it quantised; use quantization none or correct_base=false"):
        SVDStart()(module)
    assert SVDStart(correct_base=False)(module) == {}


def test_terms_in_closed_form():
    a = torch.tensor([[3.0, 0.0, 0.0], [0.0, -2.0, 0.0]])
    state = {"x.lora_A.weight": a, "x.lora_B.weight": torch.ones(2, 2)}
    assert Sparsity(weight=0.5).value(state, state, 0.3).item() == 2.5
    # A A^T - I = diag(8, 3); the weight is halfway at half time.
    for progress, weight in ((0.0, 0.1), (0.5, 0.055), (1.0, 0.01)):
        assert Orthogonality().value(state, state, progress).item() == pytest.approx(weight * 73)
    # A^T A - I in the weight's width differs by 3 - 2 = 1 only.
    assert (a.T @ a - torch.eye(3)).square().sum().item() == 73 + 1


def run(**options):
    module = ToyLoRA(LAST_QUERY)
    SVDStart()(module)
    pieces = [np.arange(0, 12), np.arange(12, 20), np.arange(20, 32)]
    data = PartitionedData(Sequences(), pieces, batch_size=4)
    orchestrator = federation(module, pieces, data=data, strategy=OneShot(), **options)
    return orchestrator, orchestrator.adapter.extract()


def test_one_round_is_the_plain_mean_of_clients_whose_signs_agree():
    terms, uploads = [SignAgreement(gamma_end=50.0), Sparsity(1e-4)], []
    orchestrator, start = run(terms=terms, client={"options": {"max_epochs": 5}})
    collect = orchestrator.engine.collect
    orchestrator.engine.collect = lambda: uploads.append(collect()) or uploads[-1]
    result = orchestrator.run()
    assert len(uploads) == 3 and [update.num_samples for update in uploads] == [12, 8, 12]
    for name, tensor in result.models["global"].items():
        mean = torch.stack([update.state[name].double() for update in uploads]).mean(0).float()
        assert torch.allclose(tensor, mean, rtol=0, atol=1e-7)
    assert {"train/sign_agreement", "train/sparsity"} <= uploads[0].metrics.keys()
    assert not same(result.models["global"], start)

    free, start = run(client={"options": {"max_epochs": 5}})
    after = free.run().models["global"]
    (name,) = (name for name in start if "lora_B" in name)

    def kept(state):
        return (state[name].sign() == start[name].sign()).float().mean().item()

    assert kept(result.models["global"]) > kept(after)
