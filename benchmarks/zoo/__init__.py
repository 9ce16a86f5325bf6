"""The zoo: networks that nobody here wrote, each compiled, trained one step, and extracted."""
