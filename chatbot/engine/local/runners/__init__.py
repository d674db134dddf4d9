"""Model runners: each computes one step of a model for many sequences, by other means."""
