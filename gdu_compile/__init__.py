"""gdu-compile."""
