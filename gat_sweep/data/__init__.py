"""The data that training uses, from files on disk to batches on a device."""
