"""The engine: prompts of token ids go in with the name of an adapter, text streams out."""
