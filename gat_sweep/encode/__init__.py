"""Pictures to shards: `gat-sweep encode`."""
