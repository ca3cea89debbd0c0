"""What leaves here: Hugging Face directories and PEFT adapters that are proven before they get their name."""
