"""Records in, records with hard negatives out, and a report of what was dropped and why."""
