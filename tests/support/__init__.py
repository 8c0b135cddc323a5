"""What the tests have in common: one noun to a module."""
