"""Which work does one worker do for the whole fleet? The ledger, the budgets' counters and the audit log."""
