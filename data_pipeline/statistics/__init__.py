"""Statistics: sums that merge, and quantities of a data set derived from them."""
