"""Errors that name the rows of a file."""

import sys
from typing import Any

from pbrl_jax.core.characters import visible
from pbrl_jax.core.errors import DataError
from pbrl_jax.text.answers import canonical_number
from pbrl_jax.text.languages import nfc

SHOWN_ERRORS = 5


class RowErrors:
    """Collects the errors of single rows, to raise one DataError with the first few."""

    def __init__(self, place: str, unit: str = "row"):
        self.place = place
        self.unit = unit
        self.found: list[tuple[int, str]] = []
        self.left_out: list[tuple[int, str]] = []
        self.noted: list[tuple[int, str]] = []

    def add(self, row: int, what: str) -> None:
        """Add the error of a row; `row` counts from 1, as editors do."""
        self.found.append((row, what))

    def leave_out(self, row: int, why: str) -> None:
        """Count a row that is left out and is no error by itself; `check` reports the number on stderr."""
        self.left_out.append((row, why))

    def note(self, row: int, what: str) -> None:
        """Count a row that is kept although something is odd; `check` reports the number on stderr."""
        self.noted.append((row, what))

    def text(self, row: int, field: str, value: Any) -> str:
        """`value` as NFC text; "" and an error where it is None, empty or no string."""
        if isinstance(value, str) and value.strip():
            return nfc(value.strip())
        what = "is missing" if value is None else "is empty" if isinstance(value, str) else f"is {type(value).__name__}"
        self.add(row, f"{field} {what}, expected text")
        return ""

    def number(self, row: int, field: str, value: Any) -> str:
        """`value` as a canonical number; "" and an error where it is none."""
        number = canonical_number(str(value).strip(), "en")
        if number is None:
            self.add(row, f"{field} is {value!r}, expected a number")
        return number or ""

    def check(self) -> None:
        """Raise DataError with the first few errors, if there are any."""
        if not self.found:
            for rows, what in ((self.left_out, "left out"), (self.noted, "noted")):
                if rows:
                    row, why = rows[0]
                    said = f"{self.place}: {len(rows)} rows {what}, the first {self.unit} {row}: {why}."
                    print(visible(said), file=sys.stderr)
            return
        found = sorted(self.found + self.left_out, key=lambda error: error[0])
        shown = "; ".join(f"{self.unit} {row}: {what}" for row, what in found[:SHOWN_ERRORS])
        more = f"; and {len(found) - SHOWN_ERRORS} more" if len(found) > SHOWN_ERRORS else ""
        raise DataError(f"{self.place}: {shown}{more}. Correct or remove these rows.")
