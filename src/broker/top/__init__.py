"""What `broker top` shows: tools, work and the queue, read again and again, and drawn on a terminal."""
