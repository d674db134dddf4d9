"""Talkback: a chatbot that learns from the people who talk to it."""
