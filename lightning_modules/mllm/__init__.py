"""The multimodal LLM."""
