"""Reading and writing that trusts nobody: folders and buckets, YAML, arrays, weights, secrets."""
