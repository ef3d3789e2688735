"""The heads that name pseudo-labels: the random one stays, the learnt one learns and trains nothing else."""

import torch
import torch.nn.functional as F
from toys_a2mc import RELEASED, a2mc, clips, full, train

from lightning_modules.contrast.pseudo_labels import PrototypeHead, balanced_codes
from lightning_modules.encoders.hierarchical import Projected


def test_random_head_is_never_trained():
    module = full(a2mc(RELEASED))
    before = module.head.fc.weight.clone()
    train(module, range(2))
    assert torch.equal(module.head.fc.weight, before) and not list(module.head.parameters())
    assert module.head.fc.weight.abs().max() <= 1 / module.feature_width**0.5, "PyTorch's default, as released"


def test_learnt_head_trains_itself_and_not_the_encoder():
    module = full(a2mc())
    outputs = module.train().objective(clips())
    outputs["head"].backward()
    reached = [name for name, p in module.named_parameters() if p.grad is not None]
    assert reached == ["head.prototypes"] and module.head.prototypes.grad.abs().sum() > 0


def test_learnt_head_tells_clusters_apart():
    """Four bunches of clips, eight labels: no label comes to stand for two bunches."""
    torch.manual_seed(0)
    head, centres = PrototypeHead(8, 8), F.normalize(torch.randn(4, 8), dim=1)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)

    def view(kinds: torch.Tensor) -> Projected:
        z = F.normalize(centres[kinds] + 0.1 * torch.randn(len(kinds), 8), dim=1)
        return Projected(z, z, z, z)

    def mixed_labels() -> int:
        kinds = torch.arange(4).repeat(50)
        found = head(view(kinds)).argmax(1)
        return sum(len(set(kinds[found == label].tolist())) > 1 for label in range(8))

    assert mixed_labels() > 0
    for _ in range(200):
        kinds = torch.randint(4, (32,))
        optimizer.zero_grad()
        head.loss_terms(view(kinds), head(view(kinds)), first=0)["head"].backward()
        optimizer.step()
    assert mixed_labels() == 0


def test_balanced_codes_use_every_label_and_give_every_clip_one_unit():
    codes = balanced_codes(torch.rand(40, 5) + torch.tensor([2.0, 0, 0, 0, 0]), iterations=100)
    assert torch.allclose(codes.sum(1), torch.ones(40))
    assert torch.allclose(codes.sum(0), torch.full((5,), 8.0), atol=0.2)
    assert torch.isfinite(balanced_codes(torch.tensor([[1e4, -1e4], [1e4, -1e4]]))).all()


def test_learnt_head_balances_its_codes_over_all_processes():
    head, torch_seed = PrototypeHead(6, 5), torch.manual_seed(2)
    z = F.normalize(torch.randn(6, 6, generator=torch_seed), dim=1)
    query, scores = Projected(z, z, z, z), head(Projected(z, z, z, z.roll(1, 0)))
    whole = head.loss_terms(query, scores, first=0)["head"]
    halves = [head.loss_terms(Projected(*(p[r : r + 3] for p in query)), scores, first=r)["head"] for r in (0, 3)]
    assert torch.allclose(torch.stack(halves).mean(), whole)
