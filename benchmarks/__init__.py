"""Timed claims: the engine beside a straightforward step, the loader, growth. Reads the engine; nothing reads it."""
