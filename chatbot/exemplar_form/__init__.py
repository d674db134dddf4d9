"""Finds and writes the form in which a base goes by approved answers in its prompt."""
