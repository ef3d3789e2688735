"""Client terms: which layers, which value, and the gradient as if the term stood in the loss."""

import math

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader
from toy_federation import Toy, dataset, federation, same

from datamodules.errors import InputError
from federated.adapter import Adapter
from federated.client import ClientTask
from federated.device import quiet, trainer
from federated.terms import FedProx, SignAgreement, TermGradients, layer_of

ADAPTIVE = {"weight": 0.1, "skip": 1 / 7, "unnumbered": False}


def numbered(depth):
    return [f"model.layers.{layer}.q_proj.lora_A.weight" for layer in range(depth)]


@pytest.mark.parametrize(("depth", "expected"), [(28, range(4, 24)), (4, range(1, 3)), (32, range(5, 27))])
def test_adaptive_regularises_the_middle_relative_to_the_depth(depth, expected):
    names = [*numbered(depth), "embed_tokens.weight"]
    found = FedProx(**ADAPTIVE).regularised(names)
    assert [layer_of(name) for name in found] == list(expected)


def test_base_regularises_everything_and_the_released_one_numbered_names():
    names = [*numbered(4), "embed_tokens.weight"]
    assert FedProx().regularised(names) == names
    assert FedProx(unnumbered=False).regularised(names) == names[:-1]


PROJECTORS = [
    "model.multi_modal_projector.modules_to_save.linear_1.weight",
    "model.multi_modal_projector.modules_to_save.linear_2.bias",
    "model.merger.modules_to_save.mlp.0.linear_1.weight",
    "model.language_model.embed_tokens.modules_to_save.weight",
]


def test_a_projectors_numbers_are_no_layers():
    assert [layer_of(name) for name in PROJECTORS] == [None] * 4
    names = [*numbered(4), *PROJECTORS]
    assert FedProx(**ADAPTIVE).regularised(names) == names[1:3]
    assert FedProx(unnumbered=False).regularised(names) == names[:4] and FedProx().regularised(names) == names


def test_other_names_of_the_stack_are_known_and_unknown_ones_told():
    others = ["transformer.h.{}.attn.lora_A", "encoder.layer.{}.query.lora_A", "blocks.{}.q.lora_A", "layers.{}"]
    assert [layer_of(name.format(12)) for name in others] == [12] * 4
    with pytest.raises(InputError, match=r"expected trained parameters named `layers.<number>.`, found 'stage7.q'"):
        FedProx(**ADAPTIVE).regularised(["stage7.q"])
    assert FedProx(**ADAPTIVE).regularised([]) == []


def test_fedprox_value_in_closed_form():
    parameters = {"l.0.w": torch.full((3,), 2.0), "l.1.w": torch.zeros(2)}
    anchor = {"l.0.w": torch.zeros(3), "l.1.w": torch.zeros(2)}
    assert FedProx(mu=0.5, weight=0.1).value(parameters, anchor, 0.0).item() == pytest.approx(0.5 * 0.5 * 0.1 * 12)


def test_sign_agreement_vanishes_where_signs_agree_and_gamma_is_large():
    b = torch.tensor([[0.5, -0.5], [1.0, -2.0]])
    anchor = {"x.lora_B.weight": b, "x.lora_A.weight": b}
    term = SignAgreement(gamma_end=200.0)
    assert term.value(anchor, anchor, 1.0).item() < 1e-6
    flipped = anchor | {"x.lora_B.weight": -b}
    assert term.value(flipped, anchor, 1.0).item() == pytest.approx(2.0, abs=1e-5)
    start = ((b.tanh() - b.sign()).norm() / 2).item()
    assert term.value(anchor, anchor, 0.0).item() == pytest.approx(start, rel=1e-5)


class InTheLoss(Toy):
    """The toy with the term written into its loss, the slow way."""

    def on_train_start(self):
        self.anchor = {name: p.detach().clone() for name, p in self.named_parameters()}

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss + MU / 2 * sum((p - self.anchor[name]).square().sum() for name, p in self.named_parameters())


MU = 3.0


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 3}, {"gradient_clip_val": 0.05}])
def test_gradients_are_those_of_the_term_inside_the_loss(options):
    states = []
    for module, terms in ((InTheLoss(dropout=0.0), []), (Toy(dropout=0.0), [FedProx(mu=MU)])):
        module.double()
        adapter = Adapter(module)
        x, y = dataset().tensors
        loader = DataLoader(torch.utils.data.TensorDataset(x.double(), y), batch_size=10)
        with quiet():
            trainer("cpu", [TermGradients(terms, adapter)], max_epochs=2, **options).fit(module, loader)
        states.append(adapter.extract())
    for name, tensor in states[0].items():
        assert torch.allclose(tensor, states[1][name], rtol=0, atol=1e-12), name


def test_a_client_logs_the_term_and_stays_nearer():
    def run(terms):
        orchestrator = federation(terms=terms)
        state = orchestrator.adapter.extract()
        update = orchestrator.engine._client.run(ClientTask(0, 0, state, 1.0, 3))
        moved = [(update.state[n] - state[n]).square().sum() for n in orchestrator.adapter.trained]
        return update.metrics, math.sqrt(sum(moved))

    metrics, near = run([FedProx(mu=20.0)])
    assert metrics["train/fedprox"] > 0 and "train/fedprox" not in run([])[0]
    assert near < 0.8 * run([])[1]


class TwoOptimisers(pl.LightningModule):
    """Manual optimisation with an optimiser a layer: the term must reach each parameter once a step."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            optimizer.step(closure=lambda: None)

    def configure_optimizers(self):
        return [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in self.net]


def test_only_the_optimisers_own_parameters_get_the_gradient():
    module = TwoOptimisers()
    adapter = Adapter(module)
    callback = TermGradients([FedProx(mu=1.0)], adapter)
    with quiet():
        fit = trainer("cpu", [], max_epochs=1)
        fit.fit(module, DataLoader(torch.zeros(1, 2)))
    callback._anchor = {name: torch.zeros_like(p) for name, p in adapter.parameters().items()}
    module.log = lambda *args, **kwargs: None
    callback.on_before_optimizer_step(fit, module, fit.optimizers[0])
    assert same({"g": module.net[0].weight.grad}, {"g": module.net[0].weight.detach()})
    assert module.net[1].weight.grad is None
