"""The exception whose message is for the user."""


class UserError(Exception):
    """An error that the user can fix; one line with what is wrong, its value and the remedy."""
