"""Delivers events (feedback, reviews, promotions) from an outbox to the operator's URLs."""
