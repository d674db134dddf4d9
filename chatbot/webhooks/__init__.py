"""Webhooks: events wait in the outbox and are delivered to the URLs that the operator names."""
