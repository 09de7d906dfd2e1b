"""Encoders of this package in other people's programs."""
