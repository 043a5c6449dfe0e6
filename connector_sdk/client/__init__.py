"""Getting events in: the clients, and the pure rules they stand on."""
