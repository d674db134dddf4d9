"""Curates feedback: turns it into training rows, each on its side of the held-out split."""
