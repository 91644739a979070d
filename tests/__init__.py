"""The tests of DSG; they mirror the source, and hold its benchmark, its demo and its test hosts."""
