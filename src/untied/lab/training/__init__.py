"""One run: a network, a rule, a seed."""
