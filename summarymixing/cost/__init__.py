"""What a training step costs, counted and not timed."""
