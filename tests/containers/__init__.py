"""What containers run, seen to run without a container engine."""
