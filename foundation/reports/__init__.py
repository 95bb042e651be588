"""Reports: pages, figures and cards that people read."""
