"""Serves chat, feedback and operations over HTTP, in a folder for each; ``routes`` lists them all.

``openai`` holds OpenAI's dialect, a module for each of its endpoints, ``feedback`` our own feedback
and TensorZero's, ``operations`` reviews, adapters, logins and monitoring. What all of them share
lies here: errors, limits, answers as they stream, and the schemas of the OpenAPI document.
"""
