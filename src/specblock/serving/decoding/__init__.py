"""From requests of the API to texts of the engine, and their pieces back."""
