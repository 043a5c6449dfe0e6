"""The scripted connector: what it says is what it does, on the wire."""
