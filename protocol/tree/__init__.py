"""A crash-safe change of an ordinary folder: stage, journal, apply, recover."""
