"""Units and numbers of things, as several packages write them."""

MB = 2**20  # bytes in what the kit calls a megabyte
MIN_MPP = 0.05  # micrometres per pixel; no scanner has smaller pixels


def many(count: int, thing: str) -> str:
    """Return a number of things for people: "1 slide", "2,000 slides"."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"
