"""What do guardrails search for, and what happens to a match? Pure: text in, findings out. See docs/guardrails.md."""
