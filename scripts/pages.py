"""Pages with a part that a script writes, between two markers."""


def replaced(text: str, begin: str, end: str, part: str) -> str:
    """A page's text with the part between the markers made anew."""
    before, rest = text.split(begin)
    return f"{before}{begin}{part}{end}{rest.split(end)[1]}"
