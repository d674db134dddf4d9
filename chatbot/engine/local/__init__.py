"""The engine on this machine: its CPU, by kernels of our own or by torch, or its GPU."""
