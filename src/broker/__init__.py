"""A broker between work that needs doing and the programs that can do it."""
