"""What the project costs beside others that do the same work. Nothing in the stages imports this."""
