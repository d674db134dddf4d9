"""The adapters page."""
