"""PostgreSQL itself: its connection URLs, the embedded one, backup and restore."""
