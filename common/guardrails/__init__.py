"""What do guardrails look for, and what becomes of it? Pure: text in, findings out. docs/guardrails.md is the whole story."""
