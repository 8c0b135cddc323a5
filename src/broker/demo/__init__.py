"""The demo laboratory: real images, instruments that submit them, and tools that analyze them."""
