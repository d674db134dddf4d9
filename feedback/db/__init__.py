"""The database: one SQLite file, its migrations, and writes that share a transaction."""
