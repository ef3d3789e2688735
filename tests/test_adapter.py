"""What is exchanged: names, strictness, the in-place switch, and the guard against what would leak."""

import pytest
import torch
from torch import nn
from toy_federation import Toy, same

from datamodules.errors import InputError
from federated.adapter import Adapter, NotFiniteError, canonical
from federated.lora_gap import MOST_BYTES, LoraGap


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


def gap_of(clients: list[dict], weights: list[float]) -> tuple[float | None, dict]:
    """Of `LoraGap`, and the clients' mean."""
    gap, total = LoraGap(), sum(weights)
    for client, weight in zip(clients, weights, strict=True):
        gap.add(client, weight)
    paired = list(zip(weights, clients, strict=True))
    mean = {name: sum(w * client[name].double() for w, client in paired) / total for name in clients[0]}
    return gap.of(mean), mean


@pytest.mark.parametrize(("rows", "inner", "columns"), [(5, 2, 6), (40, 2, 30), (40, 2, 5), (4, 2, 30)])
def test_lora_gap_is_the_distance_between_the_two_means(rows, inner, columns):
    """Against the whole products, for factors that are narrower than these and for such that are not."""
    torch.manual_seed(0)
    shapes = {"A": (inner, columns), "B": (rows, inner)}
    clients = [
        {f"{layer}.lora_{f}.weight": torch.randn(shape) for layer in "kl" for f, shape in shapes.items()} for _ in "abc"
    ]
    weights = [5.0, 3.0, 2.0]
    found, mean = gap_of(clients, weights)
    apart = size = 0.0
    for layer in "kl":
        a, b = f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"
        product = sum(w / 10 * c[b].double() @ c[a].double() for w, c in zip(weights, clients, strict=True))
        apart += (product - mean[b] @ mean[a]).square().sum().item()
        size += product.square().sum().item()
    assert found == pytest.approx((apart / size) ** 0.5, rel=1e-12) and found > 0.1
    assert gap_of(clients[:1], [7.0])[0] < 1e-14


def test_lora_gap_without_pairs_and_of_zeros():
    assert gap_of([{"w": torch.ones(2)}], [1.0])[0] is None and LoraGap().of({}) is None
    zero = {"l.lora_A.weight": torch.zeros(2, 6), "l.lora_B.weight": torch.zeros(5, 2)}
    assert gap_of([zero, zero], [1.0, 2.0])[0] == 0.0


def test_lora_gap_keeps_the_factors_alone():
    """At LLaVA's size two clients cost 67 MB, where one float64 product a pair would be 17 GB."""
    width, rank, layers = 4096, 8, 32
    names = [f"layers.{layer}.{part}_proj.lora_{{}}.weight" for layer in range(layers) for part in "qkvo"]
    shapes = {"A": (rank, width), "B": (width, rank)}
    state = {name.format(f): torch.empty(shape, device="meta") for name in names for f, shape in shapes.items()}
    kept = LoraGap.bytes_for(state | {"embed_tokens.weight": torch.empty(width, width, device="meta")}, 2)
    assert kept == 2 * 4 * layers * 4 * 2 * rank * width == 67_108_864
    assert LoraGap.bytes_for(state, 33) > MOST_BYTES == LoraGap.bytes_for(state, 32)
