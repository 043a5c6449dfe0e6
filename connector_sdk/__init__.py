"""The public names of connector_sdk."""

from connector_sdk._version import __version__ as __version__
