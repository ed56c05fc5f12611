"""Speed and memory beside other libraries and on several processes. The stages do not import this."""
