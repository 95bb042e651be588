"""Training: loss, optimizer, the LightningModule and fit(), which alone makes a Trainer."""
