"""Figures: what each analysis looks like."""
