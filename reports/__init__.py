"""Reports as HTML and Markdown, made from the JSON files of a run."""
