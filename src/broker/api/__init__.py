"""One controller for each resource: it parses the request, calls the store and shapes the response."""
