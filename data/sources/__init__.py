"""Where records come from: one small adapter for each published format, and the reader that all of them share."""
