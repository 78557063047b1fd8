"""Hard prompts to another model: decided from the prompt alone, before the student is asked."""
