"""The uvicorn server, its connections and its worker processes."""
