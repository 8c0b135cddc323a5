"""Code that all endpoints share: bodies and limits, parameters, problems, guards, waiting, OpenAPI."""
