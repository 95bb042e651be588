"""Fine-tuning that does not forget: what may change of a potential, and how far."""
