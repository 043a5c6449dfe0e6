"""The version, read by the build and by `connector_sdk.__version__`."""

__version__ = "0.1.0"
