"""Fine-tuning without forgetting: rehearsal, penalties, freezing, adapters, and their measurement."""
