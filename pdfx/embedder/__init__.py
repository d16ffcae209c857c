"""From a recipe, or from an export, to an embedder: backbone, prefixes, LoRA."""
