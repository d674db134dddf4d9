"""Serves the page on which reviewers decide about corrected and disliked answers."""
