"""What every test runs under: no network, one thread a process, no W&B account."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; the tests run in parallel processes
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
