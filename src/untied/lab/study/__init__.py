"""Many runs as one Optuna study: search, transfer, noise."""
