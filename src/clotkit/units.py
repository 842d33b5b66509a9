"""Units that several packages share."""

MB = 2**20  # bytes in what the kit calls a megabyte
