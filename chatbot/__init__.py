"""Speak: the base model, its adapters, the engine, one turn of talk, the API and the pages."""
