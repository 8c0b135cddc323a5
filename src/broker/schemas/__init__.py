"""Every request and response of the HTTP API, a module per resource. The server and the client use them.

The broker does not interpret needs, skills, payloads, data and results. They are `JSON`: text that the broker
checks and does not change, so `1.10` and an integer of 30 digits come back as they were sent.
Requests refuse unknown fields. Responses may get new fields, so their classes accept unknown ones.

A definition that several parts need is here as well: the limits of the contract in `limits`, the states and
outcomes in `states`, the roles in `keys`, the codes of errors in `problems`.
"""
