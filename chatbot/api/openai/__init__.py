"""Speaks OpenAI's dialect: a module for each endpoint, with its requests and responses beside it.

``models`` has the model names that all endpoints share, ``logprobs`` the log probabilities.
"""
