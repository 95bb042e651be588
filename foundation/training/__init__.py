"""Training: loss, optimizer, the LightningModule and fit(), the only place that makes a Trainer."""
