"""Judges a candidate adapter against the one in service, with a verdict and its reasons."""
