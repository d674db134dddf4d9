"""Answers through other servers, such as replicas of vLLM.

`remote_engine` is the engine, `replica_pool` chooses replicas and keeps their adapters loaded,
`replica` is one server's routes, `remote_stream` translates requests and answers.
"""
