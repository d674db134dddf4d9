"""Answers on this machine: on its CPU, by kernels of our own or by torch, or on its GPU.

Start at `local_engine` (threads and the queue), then `scheduler` (which tokens a step computes),
`sequence` (one stream) and `runners` (how they are computed).
"""
