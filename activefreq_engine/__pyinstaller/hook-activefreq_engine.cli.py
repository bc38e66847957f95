"""PyInstaller's hook for the command line, which imports its commands by name when they are asked for."""

from activefreq_engine.cli import LAZY

hiddenimports = [module for module, _ in LAZY.values()]
