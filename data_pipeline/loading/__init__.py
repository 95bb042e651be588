"""Loading: the plan of who reads what and when, and delivery of finished batches."""
