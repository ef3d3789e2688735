"""Image-text data: readers, modality masks, prompts, batches."""
