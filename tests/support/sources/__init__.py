"""What the product's own sources say, read for tests that hold rules about them."""
