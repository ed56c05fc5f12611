"""Speed and memory compared with other libraries, and on several processes. The stages do not import this."""
