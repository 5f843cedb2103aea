"""Vectors in, hits out: an index on disk, an exact twin in memory, two-stage search; takes any Encoder and Scorer."""
