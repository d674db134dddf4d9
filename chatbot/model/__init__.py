"""Prepares the model: loading the base, its chat template, and LoRA adapters on top of it."""
