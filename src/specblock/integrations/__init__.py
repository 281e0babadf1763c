"""SpecBlock in other people's programs, and drafters in their formats."""
