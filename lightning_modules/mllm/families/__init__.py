"""Vision-language models: one small file of glue a family."""
