"""Data on disk to batches on a device."""
