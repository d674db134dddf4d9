"""Curation: feedback in, rows to learn from out, each with its side of the split."""
