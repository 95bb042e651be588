"""Loading: which process reads what and when, and batches that arrive finished."""
