"""Errors that a person can mend, as opposed to defects of this code."""


class UserError(Exception):
    """Bad input: one line that says what is wrong and how to mend it. Commands exit with 2."""


class Diverged(Exception):
    """Training met a loss that is not finite. Earlier results stay as they were; exit code 1."""
