"""The parts of bench/fuzz.py: valid seeds, damage to them, the targets, and the watch over one input."""
