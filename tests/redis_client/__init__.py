"""The thin Redis client, against real servers, and against scripted ones for what those say rarely."""
