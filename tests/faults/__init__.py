"""What a network, a server or a process can do to a RedisEventBuffer, against real servers."""
