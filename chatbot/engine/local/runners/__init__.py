"""Holds the model runners: each computes one forward for many sequences, by other means."""
