"""Real servers and a network that fails on demand, for tests. `fixtures.py` is what tests use."""
