"""A laboratory to look at: real images, the instruments that send them, the programs that measure them."""
