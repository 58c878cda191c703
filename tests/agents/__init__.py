"""Do agents work through Sluice? Real ones, each for ten tool turns, with strict vendors that play the model.

1. package.json names the agents and their versions. ``setups`` writes each one's settings, with the lines of docs/clients.md.
2. ``work`` has the ten turns, and finds the tools for them among those that the agent offers.
3. ``vendor`` is the upstream: it refuses what the vendor refuses, and otherwise takes the next turn. ``reading`` reads the
   requests.
4. ``test_sessions`` runs every agent with every vendor, and checks what the vendor got.
"""
