"""The tests. A package, so that what they share is imported by its full name wherever they are run from."""
