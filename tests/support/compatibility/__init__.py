"""Tests of the statements in docs/compatibility.md: each cell, each field, and the page itself."""
