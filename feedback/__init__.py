"""Remember: what people said of the answers, and what may be learnt from it."""
