"""Matches questions to each other: typing errors, follow-ups, other forms, and search by words."""
