"""Opens the SQLite file, migrates it, and groups writes into shared transactions."""
