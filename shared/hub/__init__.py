"""What comes from the Hugging Face hub."""
