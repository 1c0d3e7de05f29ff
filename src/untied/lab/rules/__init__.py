"""What the lab asks of a rule beside its mathematics."""
