"""Ties the stages together: the command line, the cycle, and the demo."""
