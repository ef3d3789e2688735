"""ServerApp: federate.py, whose clients are Flower's nodes. The checkout must be on PYTHONPATH, where the door lies."""

from federate import federate
from federated.engines.flower import server_app

app = server_app(federate)
