"""Every request and response of the HTTP API, a module per resource, for the server and its clients alike.

The broker never looks inside needs, skills, payloads, data and results. They are `JSON`: the text as it came,
checked to be JSON and otherwise untouched, so that `1.10` and a 30-digit integer come back as they were.
Requests refuse fields they do not know. Responses may grow new fields, so their classes accept them.
"""
