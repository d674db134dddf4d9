"""Serves the page on which people chat, rate answers and correct them."""
