"""What all errors have in common that a user can mend."""


class UserError(Exception):
    """An error that a user can mend; the message is one sentence that says how.

    Commands tell it in one line and end with status 2. Any other error is a fault of the program
    and keeps its traceback.
    """
