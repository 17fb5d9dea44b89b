"""What the measurements mean: findings by rule, ranked, and the verdict. Pure functions, no I/O."""
