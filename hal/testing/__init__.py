"""The conformance kit: what an op has to do, and the checks that a backend is held against."""
