"""Makes the starter model, the base that comes with Talkback, from corpus to weights."""
