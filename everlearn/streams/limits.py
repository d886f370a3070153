"""Limits on data: a small file can unpack to gigabytes, so sizes are checked before anything is unpacked.

All data is held in memory. Data of everyday use stays far below these limits.
"""

MOST_ROWS = 10_000_000
"""Rows of one file."""

EXCEL_ROWS = 2**20
"""Rows of one sheet of Excel; a damaged file may claim any number."""

MOST_COLUMNS = 10_000
"""Columns of one file."""

MOST_TASKS = 10_000
"""Tasks of one stream. Every task lists the names of all classes so far."""

LONGEST_NAME = 4096
"""Characters of a label, a domain or an id."""

ROW_BYTES = 400
"""What a row takes in memory besides its content: a record, an id and their entries in lists."""

UNPACKED_BYTES = 2**30
"""What any packed file may take in memory, however small it is."""

MOST_UNPACKED_BYTES = 8 * 2**30
"""What no packed file may exceed in memory."""

EXPANSION = 100
"""How many times its own size a packed file may take in memory. Compressed texts take far less."""

IMAGE_BYTES = 256 * 2**20
"""The largest image file."""

MOST_PIXELS = 2**26
"""Pixels of an image: 8192 x 8192."""

MOST_ASPECT = 100
"""How many times longer than the other one a side of an image may be: its shorter side is resized to a fixed length."""


def most_unpacked(size: int) -> int:
    """The bytes that a packed file of `size` bytes may take in memory.

    >>> most_unpacked(1000) == 2**30, most_unpacked(2**30) == 8 * 2**30
    (True, True)
    """
    return min(max(UNPACKED_BYTES, EXPANSION * size), MOST_UNPACKED_BYTES)
