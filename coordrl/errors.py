"""The base class of errors that a user can fix."""


class UserError(Exception):
    """An error that a user can fix; the message is one sentence that says how.

    Commands print it in one line and exit with status 2. Any other error is a bug and keeps its
    traceback.
    """
