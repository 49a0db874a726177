"""How a person's name is shown and compared: pure."""

import unicodedata

FULLY_MASKED = 2
"""A name of up to this many letters shows its first letter only."""


def mask_name(name: str) -> str:
    """김토스 -> 김*스, 이솔 -> 이*, MARY ANN -> M*** **N."""
    name = unicodedata.normalize("NFC", name)
    letters = [index for index, letter in enumerate(name) if not letter.isspace()]
    shown = set(letters[:1]) if len(letters) <= FULLY_MASKED else {letters[0], letters[-1]}
    if len(letters) == 1:
        shown = set()
    return "".join(letter if index in shown or letter.isspace() else "*" for index, letter in enumerate(name))


def normalize_name(name: str) -> str:
    """One spelling for comparison: composed Unicode, single spaces, no difference of case."""
    return " ".join(unicodedata.normalize("NFC", name).split()).casefold()
