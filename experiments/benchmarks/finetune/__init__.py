"""What methods, padding, the loop and the start add to fine-tuning a language model."""
