"""Reports: pages, figures and model cards."""
