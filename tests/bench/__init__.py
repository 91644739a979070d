"""The benchmark: ``make bench``; how its figures are made is in ``docs/performance.md``."""
