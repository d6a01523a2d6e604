"""Pretrained networks that look at pictures."""
