FAMILIES: dict[str, str] = {}
