"""Errors that a user can cure; the command line prints them as one sentence without a stack trace."""


class UserError(RuntimeError):
    """A mistake in what the user brought (data, checkpoint, model); the message names the thing and the cure."""
