"""Matches questions to each other: typing errors, follow-ups, and search by words."""
