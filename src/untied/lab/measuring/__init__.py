"""Time, memory, and one layer on its own data."""
