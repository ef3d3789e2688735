"""What is made wherever clients run: the device that is configured and there, and no line that is of no concern."""

import logging

import pytest
import torch

from datamodules.errors import InputError
from federated import making

LINE = "Failed to load CPU gemm_4bit_forward from kernels-community: %s. Please make sure you already ..."


@pytest.mark.parametrize("accelerator", ["gpu", "cuda"])
def test_a_gpu_that_is_not_there_is_told_before_a_round(accelerator, monkeypatch):
    config = {"trainer": {"accelerator": accelerator}}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match=f"expected a GPU for trainer.accelerator={accelerator}, found none: take cpu"):
        making.configured_device(config)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert making.configured_device(config) == "cuda:0"


@pytest.mark.parametrize(("method", "told"), [
    (None, 0), ({}, 0), ({"quantization": "none"}, 0), ({"quantization": "nf4"}, 1), ({"quantization": "int8"}, 1),
])  # fmt: skip
def test_a_kernel_for_4_bits_is_spoken_of_where_something_is_quantised(method, told, caplog):
    log = logging.getLogger("bitsandbytes.backends.cpu.ops")
    kept = list(log.filters)
    try:
        making.hush({"method": {"quantization": "none"}})  # of an earlier job in this process
        making.hush({"method": method})
        log.warning(LINE, OSError("no network"))
        log.warning("another line")
    finally:
        log.filters[:] = kept
    assert [record.message for record in caplog.records if "gemm_4bit" in record.message] == told * [
        LINE % "no network"
    ]
    assert caplog.records[-1].message == "another line"
