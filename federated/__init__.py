"""Rounds of Lightning trainers: any LightningModule as the clients of a federation."""
