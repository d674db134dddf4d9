"""The HTTP API: OpenAI's completions, feedback, oversight, and what watches over them."""
