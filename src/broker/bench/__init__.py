"""Measure what the broker does on this machine, and next to each figure what the machine allows.

Each round measures a figure and its ceiling on the same database server. Compare their ratio: it depends much
less on the machine, and on its other load, than the figures do.
"""
