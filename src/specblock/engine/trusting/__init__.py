"""How far a drafter's claims can be trusted: learned on prompts, kept with its weights."""
