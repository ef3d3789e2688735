"""build() makes what a configuration describes, and cannot be walked through to anything else."""

import functools
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint

from tracking import build as build_module
from tracking.build import build, factory
from tracking.errors import UsageError
from tracking.extras import EXTRAS


@pytest.fixture
def shop(monkeypatch):
    """A module of ours, made for the test, that like any real module also holds what it imported."""
    import os
    import pathlib
    import types

    class Wheel:
        def __init__(self, size: int, tags: list | None = None):
            self.size, self.tags = size, tags

    class Cart:
        def __init__(self, wheels, *, name="cart", extra=None):
            self.wheels, self.name, self.extra = wheels, name, extra

    class Anything:
        def __init__(self, **options):
            self.options = options

    class _Hidden:
        pass

    def helper():
        return "called"

    module = types.ModuleType("datamodules.shop")
    for thing in (Wheel, Cart, Anything, _Hidden, helper):
        thing.__module__ = module.__name__
        setattr(module, thing.__name__, thing)
    module.os, module.Path, module.system = os, pathlib.Path, os.system
    module.eval, module.instance = eval, Wheel(1)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(build_module, "_factories", set())
    return module


def node(target: str, **rest):
    return {"_target_": target, **rest}


def test_nested_nodes_in_dicts_and_lists_are_built_first(shop):
    wheel = node("datamodules.shop.Wheel", size="${size}", tags=["a", {"b": 1}])
    cart = node("datamodules.shop.Cart", wheels=[wheel, wheel], extra={"spare": wheel, "none": None})
    config = OmegaConf.create({"size": 7, "cart": cart})
    built = build(config.cart)
    assert isinstance(built, shop.Cart)
    assert [type(w) for w in built.wheels] == [shop.Wheel] * 2 and type(built.wheels) is list
    assert built.extra["spare"].size == 7 and built.extra["none"] is None and type(built.extra) is dict
    assert built.wheels[0].tags == ["a", {"b": 1}] and type(built.wheels[0].tags) is list
    assert type(built.wheels[0].tags[1]) is dict


def test_a_partial_waits_for_the_rest(shop):
    partial = build(node("torch.optim.SGD", lr=0.5, _partial_=True))
    assert isinstance(partial, functools.partial)
    optimizer = partial([torch.nn.Parameter(torch.zeros(1))])
    assert isinstance(optimizer, torch.optim.SGD) and optimizer.defaults["lr"] == 0.5


def test_keyword_arguments_win_and_are_handed_over_as_they_are(shop):
    ready = {"_target_": "builtins.eval"}  # a value, not a description: must not be looked into
    cart = build(node("datamodules.shop.Cart", wheels=1, name="old"), name="new", extra=[object, ready])
    assert (cart.wheels, cart.name) == (1, "new") and cart.extra[1] is ready


def test_what_an_argument_replaces_is_not_built(shop):
    cart = node("datamodules.shop.Cart", wheels=node("datamodules.shop.Wheel", wrong=1))
    assert build(cart, wheels=3).wheels == 3


@pytest.mark.parametrize("value", [None, 3, "text", [1, [2]], {"a": {"b": [None]}}])
def test_what_has_no_target_stays_what_it_is(value):
    assert build(value) == value
    assert build(OmegaConf.create({"value": value})) == {"value": value}


def test_arguments_without_a_target_to_take_them_are_an_error():
    with pytest.raises(UsageError, match="_target_"):
        build({"lr": 1}, params=[])


def test_trusted_packages_build():
    assert isinstance(build(node("pytorch_lightning.callbacks.ModelCheckpoint", save_last=True)), ModelCheckpoint)
    schedule = build(node("torch.optim.lr_scheduler.StepLR", step_size=3, _partial_=True))
    assert schedule.func is torch.optim.lr_scheduler.StepLR


@pytest.mark.parametrize(
    "target",
    [
        "builtins.eval",
        "os.system",
        "subprocess.Popen",
        "eval",
        "",
        ".",
        "datamodules",
        "datamodules.shop",
        "datamodules.shop.os",
        "datamodules.shop.os.system",
        "datamodules.shop.system",
        "datamodules.shop.eval",
        "datamodules.shop.Path",
        "datamodules.shop.Path.home",
        "datamodules.shop.helper",
        "datamodules.shop.instance",
        "datamodules.shop._Hidden",
        "datamodules.shop.Wheel.__init__",
        "datamodules.shop.Wheel.__class__",
        "datamodules.shop.__loader__",
        "datamodules.shop.Gone",
        "datamodules.gone.Wheel",
        "datamodulesque.shop.Wheel",
        "torch.optimum.SGD",
        "torch.load",
        "torch.optim.sgd.torch.load",
        "torch.optim.lr_scheduler.partial",
        "torch.optim.lr_scheduler.warn",
        "torch.optim.lr_scheduler.Counter",
        "torch.optim._functional.adam",
        "pytorch_lightning.Trainer",
        "pytorch_lightning.callbacks.model_checkpoint.os",
        "tracking.identity.subprocess.run",
        "tracking.identity.commit",
        "tracking..identity.commit",
        3,
        None,
        ["torch.optim.SGD"],
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_everything_else_is_refused_in_one_line(shop, target, nested):
    description = node(target)
    if nested:
        description = node("datamodules.shop.Wheel", size=1, tags=[{"deep": description}])
    with pytest.raises(UsageError, match="_target_") as caught:
        build(description)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["bomb_for_test", "datamodules_bomb_for_test"])
def test_a_refused_target_is_not_even_imported(tmp_path, monkeypatch, name):
    (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError):
        build(node(f"{name}.Thing"))


def test_a_function_builds_only_once_registered_and_only_from_our_modules(shop):
    assert factory(shop.helper) is shop.helper
    assert build(node("datamodules.shop.helper")) == "called"
    shop.stranger = factory(lambda: "never")
    with pytest.raises(UsageError, match="not allowed"):
        build(node("datamodules.shop.stranger"))


def test_a_module_that_lacks_its_package_says_which(tmp_path, monkeypatch):
    import datamodules

    (tmp_path / "needy_for_test.py").write_text("import no_such_package_here\n")
    monkeypatch.setattr(datamodules, "__path__", [*datamodules.__path__, str(tmp_path)])
    with pytest.raises(UsageError, match=r"no_such_package_here.*install it"):
        build(node("datamodules.needy_for_test.Thing"))
    (tmp_path / "flowery_for_test.py").write_text("import flwr.app\n")
    monkeypatch.setitem(sys.modules, "flwr", None)  # as if it were not there
    with pytest.raises(UsageError, match=r"the package 'flwr.*': pip install -c constraints\.txt -e '\.\[flower\]'"):
        build(node("datamodules.flowery_for_test.Thing"))


def test_the_extras_that_are_told_are_there():
    told = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRAS.values()) == set(told) - {"dev"}


@pytest.mark.parametrize("partial", [False, True])
def test_a_wrong_key_names_target_key_and_the_keys_there_are(shop, partial):
    with pytest.raises(UsageError) as caught:
        build(node("datamodules.shop.Cart", wheels=1, nmae="x", _partial_=partial))
    assert str(caught.value) == "datamodules.shop.Cart does not take 'nmae'; it takes wheels, name, extra"


def test_a_missing_key_is_named_too(shop):
    with pytest.raises(UsageError, match=r"datamodules\.shop\.Cart needs 'wheels'"):
        build(node("datamodules.shop.Cart", name="x"))


def test_open_ended_constructors_take_what_they_like_but_no_private_key(shop):
    assert build(node("datamodules.shop.Anything", a=1)).options == {"a": 1}
    with pytest.raises(UsageError, match="_recursive_"):
        build(node("datamodules.shop.Anything", _recursive_=False))
    with pytest.raises(UsageError, match="true or false"):
        build(node("datamodules.shop.Anything", _partial_="yes"))


def test_errors_inside_a_constructor_keep_their_type(shop):
    def explode(self):
        raise TypeError("inside")

    shop.Wheel.__init__ = explode
    with pytest.raises(TypeError, match="inside"):
        build(node("datamodules.shop.Wheel"))
