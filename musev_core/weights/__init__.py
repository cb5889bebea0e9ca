"""Weight files: read, recognised, checked, renamed, merged with LoRA, and made into a pipeline."""
