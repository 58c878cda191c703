"""Readers of the product's own sources, for tests that check rules about them."""
