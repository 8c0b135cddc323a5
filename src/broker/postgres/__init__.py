"""Run the embedded PostgreSQL, read connection URLs, and back up and restore databases."""
