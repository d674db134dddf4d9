"""Review: the queue of answers that wait for a person, and what that person decides."""
