"""Side-by-side runs against other people's tools, each with a gate that the rows are right; see README.md.

Here: benchmarks and what they need. Not here: tests of the package, which time nothing. Nothing imports it but its own
test.
"""
