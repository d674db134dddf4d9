"""Holds the engines: requests of token ids for an adapter go in, text streams out."""
