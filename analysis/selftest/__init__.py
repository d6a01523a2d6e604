"""Draws with known answers: how often the intervals that the commands print hold them (`fit-law --selftest`)."""
