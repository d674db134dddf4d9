"""The in-process engine: this machine's CPU, by kernels of our own or by torch, or its GPU."""
