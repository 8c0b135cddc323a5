"""Keys and tokens: who makes a request, with which roles, and whose things they are."""
