"""HTTP and nothing else: a controller for each resource parses, calls the store, shapes the answer."""
