"""Trains: a snapshot, a recipe and a base become an adapter folder."""
