"""The demo laboratory: real images, the instruments that submit them, and the tools that analyse them."""
