"""Millions of documents in, shards of vectors out: streamed, deduplicated, resumable."""
