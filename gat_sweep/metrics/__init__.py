"""Feature networks and distances between sets of images. Every number carries its protocol."""
