"""The measurements: what the broker does on this machine, and beside each figure what the machine allows.

Every figure comes with its ceiling, measured in the same round on the same database server, so that what
counts is a ratio: it hardly moves with the machine, nor with what else the machine does.
"""
