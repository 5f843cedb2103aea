"""Documents into training records, through a language model. Imports no torch; a local model does when it is made."""
