"""What decoding a cell needs beyond its model's family, as its settings say."""

from __future__ import annotations

from importlib.util import find_spec

from bench.errors import UserError
from bench.suite import Cell
from models.interface import Options
from models.registry import load_family


def modules_of(cell: Cell) -> tuple[str, ...]:
    """Return the local modules that are loaded by name."""
    return _settings(cell).modules()


def packages_of(cell: Cell) -> tuple[str, ...]:
    """Return the packages beyond the usual ones.

    Raises:
        UserError: one is not installed.
    """
    packages = _settings(cell).packages()
    for package in packages:
        if find_spec(package) is None:
            raise UserError(
                f"{cell.model.system} [{cell.settings_label}] needs the package {package}, which is not installed: "
                f"pip install -e '.[peers]', or leave it out with --only"
            )
    return packages


def _settings(cell: Cell) -> Options:
    return load_family(cell.model.family).settings(**cell.settings)
