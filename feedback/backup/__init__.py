"""Puts a home into one verified archive, and brings it back."""
