"""Where is the test of what I change? In the folder of its room, under its name.

``workers/quota/gate.py`` has ``tests/workers/quota/test_gate.py``; a folder of providers or dialects has files of its name
(``workers/providers/gemini/request.py``: ``tests/workers/providers/test_gemini_request.py``). Beside the rooms:

- ``contracts``: what every channel, dialect and wire must hold, each tried on all of them.
- ``e2e``, ``browser``, ``deploy``, ``security``: real processes, through HTTP.
- ``agents``: agents from npm, each for a session with tools, with upstreams that play strict vendors.
- ``chaos``, ``soak``: programs that run for minutes (``make chaos``, ``make soak``), and the tests of what they judge by.
- ``support``: what tests use and no test is. ``recordings``: upstreams' answers, as bytes.

A package, so that what they share is imported by its full name wherever they are run from.
"""
