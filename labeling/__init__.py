"""Between stages 1 and 2: K answers per prompt, and labelers that rank them."""
