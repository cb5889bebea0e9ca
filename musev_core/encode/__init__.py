"""What the networks take and give: prompts, texts, pictures and faces as tokens, frames as latents and back."""
