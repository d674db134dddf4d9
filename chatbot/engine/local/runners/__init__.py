"""Model runners: each computes one forward of a model for many sequences, by other means."""
