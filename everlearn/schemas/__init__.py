"""What everlearn's own files hold, and strict readers for them.

A run's folder may come from anywhere. So each of its files is checked as a whole before anything of it is used:
types, ranges, and that the parts fit together. A file that differs is refused in one line that names the entry.
"""
