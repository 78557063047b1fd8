"""Teachers: who answers the prompts, and the Ray Data stage that asks them."""
