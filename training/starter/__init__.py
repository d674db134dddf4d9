"""The starter model: how the base that comes with Talkback was made, from corpus to weights."""
