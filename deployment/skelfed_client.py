"""ClientApp: a client of the federation, its data prepared on this node's disk."""

from federated.engines.flower import client_app, configured_site

app = client_app(configured_site)
