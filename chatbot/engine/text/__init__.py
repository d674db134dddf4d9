"""Makes text of tokens, and tells an answer from the thought before it."""
