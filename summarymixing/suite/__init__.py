"""Every MP3S task for every encoder: what to run, running it, the tables."""
