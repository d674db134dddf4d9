"""Auth: who may do what, by key, by login, or by being on this machine."""
