"""A steady mix of all that clients do, and whether anything grows that should not."""
