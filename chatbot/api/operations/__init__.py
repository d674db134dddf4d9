"""Serves those who run the bot: reviews, adapters, logins, health and metrics."""
