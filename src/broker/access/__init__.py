"""Keys, tokens, roles and ownership."""
