"""Released potentials: the registry of their names, the cache of their files, and their lineage."""
