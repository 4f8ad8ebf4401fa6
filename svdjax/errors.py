"""The one exception for mistakes that the user can mend, and the check for optional packages."""

import importlib
from types import ModuleType


class UserError(Exception):
    """A mistake that the user can mend: one line that says what, where, and what to do.

    The command line prints the message without a traceback and exits with code 2.
    """


def require(module: str, extra: str) -> ModuleType:
    """Import an optional package.

    Args:
        module: name to import, e.g. ``"torch"``.
        extra: the extra of this package that installs it.

    Raises:
        UserError: the package is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise UserError(f"{module} is not installed: run `pip install 'svdjax[{extra}]'`") from None
