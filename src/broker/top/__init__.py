"""Read tools, work and the queue repeatedly, and draw them on a terminal, for `broker top`."""
