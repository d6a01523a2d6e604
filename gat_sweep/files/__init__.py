"""Safe reading and writing of untrusted files: folders and buckets, YAML, arrays, weights, secrets."""
