"""What only the demo needs: a small base model, a sentence encoder, Wikipedia articles and the seed set."""
