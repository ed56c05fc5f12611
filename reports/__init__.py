"""Reports as HTML and Markdown, made from the JSON files of a run."""

import os
from importlib.util import find_spec

# A notebook's kernel sets this variable for the commands that it starts, and matplotlib cannot be imported if that
# backend is not installed.
if "inline" in os.environ.get("MPLBACKEND", "") and find_spec("matplotlib_inline") is None:
    del os.environ["MPLBACKEND"]
