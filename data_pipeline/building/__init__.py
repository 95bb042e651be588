"""Building: a source of labelled frames becomes shards and a manifest."""
