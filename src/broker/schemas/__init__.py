"""Request and response bodies of the HTTP API, one module per resource. The server and the client use them.

The broker does not interpret needs, skills, payloads, data and results. They are `JSON`: text that the broker
checks and does not change. So `1.10` and an integer of 30 digits come back unchanged.
Requests refuse unknown fields. Clients accept unknown fields in responses, because responses may get more
fields.

Shared definitions are also here: the limits of the contract in `limits`, states and outcomes in `states`,
roles in `keys`, and error codes in `problems`.
"""
