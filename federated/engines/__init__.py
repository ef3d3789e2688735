"""Where clients run.

Flower reports its use and looks for updates unless the environment forbids it, which it reads when it is imported.
"""

import os

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
