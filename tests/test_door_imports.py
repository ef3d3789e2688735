"""No door imports what it does not use: what is loaded by its first step beyond what Lightning loads by itself."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LLM = {"transformers", "peft", "bitsandbytes", "accelerate", "lightning_modules.mllm", "datamodules.image_text"}
SERVICES = {"wandb", "flwr", "ray", "submitit", "tensorboard", "wandb_workspaces"}
REPORT = {"tracking.report", "tracking.page", "markdown_it", "sklearn"}
COMPUTING = {"torch", "pytorch_lightning", "lightning_modules", "federated"}
# Door -> what it builds before its first step, and what of the above it must not have loaded. In this order in one
# process: each may load more than the one before.
TRAINING = {
    "train": ("['experiment=ntu60/sds_cl_xsub', 'scale=mini']", ["method"], LLM | SERVICES | REPORT | {"federated"}),
    "eval": (
        "['experiment=ntu60/sds_cl_xsub', 'scale=mini', 'protocol=knn']",
        ["protocol.measure"],
        LLM | SERVICES | REPORT | {"federated"},
    ),
    "federate": (
        "['experiment=federated/sds_cl_by_camera', 'scale=mini']",
        ["method", "federated.strategy", "federated.partition"],
        LLM | SERVICES | REPORT,
    ),
}
STEP = """
    import {door}
    config = compose({door!r}, {overrides})
    for name in {built}:
        build(OmegaConf.select(config, name))
    print(json.dumps([{door!r}, sorted(set(sys.modules) - own)]))
"""


def loaded(script: str) -> dict[str, set[str]]:
    """What a process that runs `script` has loaded, by what it prints."""
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return {door: set(modules) for door, modules in map(json.loads, ran.stdout.splitlines())}


def test_a_door_that_trains_loads_only_what_it_uses():
    script = "import json, sys\nimport pytorch_lightning, torchmetrics.classification\nown = set(sys.modules)\n"
    script += "from hydra import compose, initialize_config_dir\nfrom omegaconf import OmegaConf\n"
    script += (
        f"from tracking.build import build\nwith initialize_config_dir({str(ROOT / 'conf')!r}, version_base='1.3'):"
    )
    for door, (overrides, built, _) in TRAINING.items():
        script += STEP.format(door=door, overrides=overrides, built=built)
    found = loaded(script)
    for door, (_, _, unused) in TRAINING.items():
        assert "lightning_modules.sds_cl" in found[door] or door == "eval"
        assert not found[door] & unused, door


def test_preparing_and_reporting_load_no_torch():
    found = loaded(
        "import json, sys\nimport prepare\nprint(json.dumps(['prepare', sorted(sys.modules)]))\n"
        "import report\nprint(json.dumps(['report', sorted(sys.modules)]))\n"
    )
    assert not found["prepare"] & (COMPUTING | LLM - {"datamodules.image_text"} | SERVICES | REPORT)
    assert "tracking.report" in found["report"]
    assert not found["report"] & (COMPUTING | SERVICES | {"transformers", "sklearn"})
