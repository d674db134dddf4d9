"""Times steps, and chooses by what they took: on how many CPU threads they run, and how many tokens
of prompts they have beside running streams."""
