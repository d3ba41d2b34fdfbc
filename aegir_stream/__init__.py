"""The flight recorder for post-training runs."""
