"""Augmentations and streams: pure, batched tensor functions; what they draw is drawn apart from how it is applied."""
