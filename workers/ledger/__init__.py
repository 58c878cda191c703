"""What does one worker of the fleet do for all: the ledger, the budgets' counters, the audit log?"""
