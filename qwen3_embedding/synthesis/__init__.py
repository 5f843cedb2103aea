"""Documents into training records, through a language model. This room imports no torch."""
