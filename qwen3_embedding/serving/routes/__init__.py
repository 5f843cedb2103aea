"""One dialect a file: its fields, its answers, its wording of errors."""
