"""The built-in assets: a small base model, a sentence encoder, Wikipedia articles and the seed set."""
