"""Feedback over HTTP, in our own shape and in that of TensorZero."""
