"""Jobs that work through a buffer."""
