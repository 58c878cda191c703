"""Mutants: small faults put into the core, each of which a unit or contract test should notice. See ``__main__``."""
