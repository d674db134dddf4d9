"""OpenAI's shapes: what its clients send, and what they are answered."""
