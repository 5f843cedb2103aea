"""Where vectors go from the shards: files and databases behind one protocol, each row exactly once by its id."""
