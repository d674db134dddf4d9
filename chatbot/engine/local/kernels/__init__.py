"""Computes the Llama family on CPUs with AVX-512 by kernels in C, which Python calls from here.

pip compiles the C, where there is a compiler, for two kinds of CPU (`pyproject.toml`). `library`
picks the library that fits this one, `structs` declares what it reads, `panels` lays weights out.
"""
