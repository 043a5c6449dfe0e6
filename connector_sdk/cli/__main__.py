"""`python -m connector_sdk.cli` is `connector-sdk`."""

from connector_sdk.cli import main

if __name__ == "__main__":
    main()
