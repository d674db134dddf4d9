"""Guards a home: who uses it now, and whether its file system can hold it."""
