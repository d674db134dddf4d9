"""Measures what this machine offers (`hardware`), and what a base needs of it (`memory_need`)."""
