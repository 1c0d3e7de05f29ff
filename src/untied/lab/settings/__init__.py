"""What a user decides for one command, as frozen dataclasses. Those of training are in config.py."""
