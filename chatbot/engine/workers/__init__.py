"""Runs the local engine in processes of its own, called workers.

In the server's process an engine would wait at every step for the interpreter, which HTTP, pages
and the database keep busy. Several workers of few threads each generate more than one of many
threads, which wait for each other after every matrix product.

`workers_engine` spreads requests over the workers and restarts them, `router` chooses one,
`worker_handle` is a worker as the server sees it, `worker_process` is what runs in its process, and
`messages` is what the two send each other. `capacity` decides how many workers there are.
"""
