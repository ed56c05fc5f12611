"""Between stages 1 and 2: K answers a prompt, and labelers that rank them."""
