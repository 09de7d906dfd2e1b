"""Scores of encoders that train nothing."""
