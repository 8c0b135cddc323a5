"""Measure the broker and the limits of this machine.

Each round measures a figure and its limit on the same database server. Compare their ratio, which depends
much less on the machine and its other load than the figures do.
"""
