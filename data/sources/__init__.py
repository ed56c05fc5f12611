"""Sources of records: the table of formats, their row functions, and the reader that all of them share."""
