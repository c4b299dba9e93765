"""Benchmarks that print a table; none is part of the program."""
