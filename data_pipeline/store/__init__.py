"""Store: blocks of structures in shards, their indexes and the manifest, on disk or at a URL."""
