"""Statistics: sums that merge, and what they say of a data set."""
