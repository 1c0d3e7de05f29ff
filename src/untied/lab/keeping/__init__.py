"""The run folder: its files, what made it, who writes to it."""
