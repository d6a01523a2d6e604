"""What a step, a picture and a trial take on this machine."""
