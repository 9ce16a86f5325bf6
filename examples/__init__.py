"""Examples: each a script that prints what it shows, run by the tests."""
