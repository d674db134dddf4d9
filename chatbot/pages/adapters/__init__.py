"""Serves the page that shows adapters, their reports and promotions."""
