"""What is exchanged: names, strictness, the in-place switch, and the guard against what would leak."""

import pytest
import torch
from torch import nn
from toy_federation import Toy, same

from datamodules.errors import InputError
from federated.adapter import Adapter, NotFiniteError, canonical
from federated.lora_gap import with_products, without_products


class WithKeyEncoder(nn.Module):
    """A trained and a frozen encoder of the same shape, a queue and its integer pointer, an unsaved cache."""

    def __init__(self):
        super().__init__()
        self.query, self.key = nn.Linear(3, 2), nn.Linear(3, 2).requires_grad_(False)
        self.register_buffer("queue", torch.zeros(4, 2))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("cache", torch.zeros(2), persistent=False)

    def follow(self):
        with torch.no_grad():
            self.key.weight.lerp_(self.query.weight, 0.5)


def test_exchanged_are_trained_parameters_and_saved_floating_buffers():
    adapter = Adapter(WithKeyEncoder())
    assert adapter.names == ["query.bias", "query.weight", "queue"]
    assert adapter.trained == {"query.bias", "query.weight"} and adapter.buffers == {"queue"}
    assert not adapter.local and Adapter(WithKeyEncoder(), local_buffers=True).local == {"queue"}
    carried = Adapter(WithKeyEncoder(), carry=["key."], local_buffers=True)
    assert carried.buffers == {"key.bias", "key.weight", "queue"} and carried.local == {"queue"}
    assert carried.trained == adapter.trained


def test_a_switch_copies_in_place_and_extract_shares_nothing():
    module = Toy()
    adapter = Adapter(module)
    first = adapter.extract()
    weight = module.net[0].weight
    with torch.no_grad():
        for tensor in [*module.parameters(), module.net[1].running_mean]:
            tensor.add_(1)
    module.net[1].num_batches_tracked.fill_(7)
    assert not same(adapter.extract(), first) and list(first) == adapter.names
    adapter.load(first)
    assert same(adapter.extract(), first)
    assert module.net[0].weight is weight and module.net[1].num_batches_tracked == 0
    first["net.0.weight"].zero_()
    assert weight.abs().sum() > 0


def broken(state, how):
    name = "net.0.weight"
    if how == "missing":
        del state[name]
    elif how == "strange":
        state["other"] = state[name]
    elif how == "shape":
        state[name] = state[name].T.contiguous()
    elif how == "dtype":
        state[name] = state[name].double()
    else:
        state[name][0, 0] = float(how)
    return state


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("missing", "expected tensor 'net.0.weight', found it missing"),
        ("strange", "expected no tensor 'other'"),
        ("shape", r"as \(8, 4\) torch.float32, found \(4, 8\) torch.float32"),
        ("dtype", r"as \(8, 4\) torch.float32, found \(8, 4\) torch.float64"),
        ("nan", "finite numbers in 'net.0.weight'"),
        ("inf", "finite numbers in 'net.0.weight'"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_whole(how, told):
    adapter = Adapter(Toy())
    before = adapter.extract()
    other = {name: tensor + 1 for name, tensor in before.items()}
    with pytest.raises(InputError, match=told) as error:
        adapter.load(broken(other, how))
    assert same(adapter.extract(), before), "nothing may be copied before everything is checked"
    assert isinstance(error.value, NotFiniteError) == (how in ("nan", "inf"))


def test_a_frozen_parameter_that_changes_is_told_unless_carried():
    module = WithKeyEncoder()
    adapter = Adapter(module)
    adapter.load(adapter.extract())
    adapter.check_frozen()
    module.follow()
    with pytest.raises(InputError, match=r"frozen parameter 'key\.weight'"):
        adapter.check_frozen()
    carried = Adapter(module, carry=["key."])
    carried.load(carried.extract())
    module.follow()
    carried.check_frozen()


def test_mistaken_choices_are_told():
    with pytest.raises(InputError, match="begin with 'kee'"):
        Adapter(WithKeyEncoder(), carry=["kee"])
    with pytest.raises(InputError, match="require gradients, found none"):
        Adapter(nn.Linear(2, 2).requires_grad_(False))


def lora_model():
    from peft import LoraConfig, get_peft_model  # heavy, and only these two tests need it

    base = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    return get_peft_model(base, LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights=False))


def test_peft_names_lose_the_adapter_name():
    adapter = Adapter(lora_model())
    expected = [f"base_model.model.{layer}.lora_{factor}.weight" for layer in (0, 2) for factor in "AB"]
    assert adapter.names == expected and adapter.trained == set(expected)
    assert canonical("x.lora_embedding_A.mine") == "x.lora_embedding_A"
    assert canonical("x.lora_A.weight") == "x.lora_A.weight"


def test_two_lora_adapters_at_once_are_told():
    from peft import LoraConfig

    model = lora_model()
    model.add_adapter("second", LoraConfig(r=2, target_modules=["0"]))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora" in name)
    with pytest.raises(InputError, match="one LoRA adapter"):
        Adapter(model)


def test_lora_gap_is_the_distance_between_the_two_means():
    torch.manual_seed(0)
    clients = [{"l.lora_A.weight": torch.randn(2, 6), "l.lora_B.weight": torch.randn(5, 2)} for _ in range(3)]
    weights = [0.5, 0.3, 0.2]
    extended = [with_products(client) for client in clients]
    mean = {n: sum(w * e[n].double() for w, e in zip(weights, extended, strict=True)) for n in extended[0]}
    plain, gap = without_products(mean)
    factors = [(client["l.lora_B.weight"].double(), client["l.lora_A.weight"].double()) for client in clients]
    product = sum(w * b @ a for w, (b, a) in zip(weights, factors, strict=True))
    assert plain.keys() == clients[0].keys()
    apart = product - plain["l.lora_B.weight"] @ plain["l.lora_A.weight"]
    assert gap == pytest.approx((apart.norm() / product.norm()).item(), rel=1e-12) and gap > 0.1
    alone, no_gap = without_products({n: t.double() for n, t in extended[0].items()})
    assert no_gap < 1e-12 and alone.keys() == plain.keys()
    assert without_products({"w": torch.ones(2)})[1] is None
    zero = {name: torch.zeros_like(tensor) for name, tensor in clients[0].items()}
    assert without_products({n: t.double() for n, t in with_products(zero).items()})[1] == 0.0
