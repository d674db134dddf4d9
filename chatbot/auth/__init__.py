"""Decides who may do what: by API key, by login, or by being on this machine."""
