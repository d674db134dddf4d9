"""Keeps what a base can do besides what people teach it: general prompts, and its own answers."""
