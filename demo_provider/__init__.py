"""What stands in for an LLM vendor where none is wanted: in ``sluice dev``, local runs, tests and failure injection.

A real HTTP server that speaks its vendors' wires, says a text that anyone can compute, and fails on request.
``script`` has the syntax of model names, ``server`` the entry points.
"""
