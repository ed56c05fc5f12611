"""Reports as HTML and Markdown, made from the JSON files of a run."""

import os
from importlib.util import find_spec

# A notebook's kernel passes its backend to the commands that it starts, and matplotlib refuses it where it is missing.
if "inline" in os.environ.get("MPLBACKEND", "") and find_spec("matplotlib_inline") is None:
    del os.environ["MPLBACKEND"]
