"""Serves what people see in the browser: the chat, the review queue and the adapters."""
