"""Encoding of pictures into shards, for `gat-sweep encode`."""
