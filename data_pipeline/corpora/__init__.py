"""Corpora: public data sets by name; downloads that resume and are verified."""
