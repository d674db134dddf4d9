"""Keeps conversations and feedback on answers, and decides what may be learnt from them."""
