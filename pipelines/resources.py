"""Files that ship with the package."""

from __future__ import annotations

from pathlib import Path

from recs.errors import UserError


def conf_folder() -> Path:
    """Return the folder of the shipped ``*.yaml``: beside this file in an installed wheel, at the
    top of the repository in a checkout.

    Raises
    ------
    UserError
        If the package was installed without it.
    """
    here = Path(__file__).resolve().parent
    for folder in (here / "conf", here.parent / "conf"):
        if folder.is_dir():
            return folder
    raise UserError(f"no conf folder at {here} or above: install recs again")
