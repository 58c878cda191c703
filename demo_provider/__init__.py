"""What replaces an LLM vendor in ``sluice dev``, local runs, tests and failure injection?

A real HTTP server that speaks the vendors' wires, answers with a text that anyone can compute, and fails on request.
``script`` has the syntax of model names, ``server`` the entry points.
"""
